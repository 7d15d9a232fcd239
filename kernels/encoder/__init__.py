"""An encoder's own parts, beside its layers of experts: attention, residual norms, and the whole encoder, frozen."""

from kernels.encoder.attention import packed_attention
from kernels.encoder.frozen import BlockParts, CannotFreeze, EncoderParts, FeedForwardParts, FrozenEncoder
from kernels.encoder.residual import residual_norm

__all__ = [
    "BlockParts",
    "CannotFreeze",
    "EncoderParts",
    "FeedForwardParts",
    "FrozenEncoder",
    "packed_attention",
    "residual_norm",
]
