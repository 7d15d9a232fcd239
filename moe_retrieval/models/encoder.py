"""A Transformer encoder of the BERT family, over sequences laid end to end.

    encoder = Encoder(EncoderShape(hidden_size=384, num_layers=6, num_heads=12, ffn_size=1536))
    hidden_TH = encoder(input_ids_T, cu_seqlens, max_len)

There is no padding anywhere: T counts real tokens, and sequence i is the rows cu_seqlens[i] : cu_seqlens[i + 1].
Suffixes: T tokens, H hidden, A heads, D head size, P sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from kernels.activations import ACTIVATIONS, activate
from kernels.encoder import BlockParts, CannotFreeze, EncoderParts, FeedForwardParts, packed_attention, residual_norm
from moe_retrieval.errors import InputError
from moe_retrieval.models.hash_experts import HashExperts
from moe_retrieval.models.packed import PackedTokens
from moe_retrieval.models.typed import check_types


@dataclass(frozen=True)
class EncoderShape:
    """Everything about an encoder but its weights."""

    vocab_size: int = 30522
    hidden_size: int = 384
    num_layers: int = 6
    num_heads: int = 12
    ffn_size: int = 1536
    max_positions: int = 512
    activation: str = "gelu"
    norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        check_types(self, "encoder")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and value < 1:
                raise InputError(f"encoder: {field.name} must be an int of at least 1, got {value!r}")
        if not 0 < self.norm_eps < 1:
            raise InputError(f"encoder: norm_eps must be above 0 and below 1, got {self.norm_eps}")
        if self.hidden_size % self.num_heads:
            raise InputError(
                f"encoder: hidden_size must be a multiple of the number of heads, "
                f"got {self.hidden_size} with {self.num_heads} heads"
            )
        if self.activation not in ACTIVATIONS:
            raise InputError(f"encoder: activation must be one of {', '.join(ACTIVATIONS)}; got {self.activation!r}")


def pack(sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, int]:
    """Token ids of each sequence -> input_ids_T, cu_seqlens (int32), max_len: what an encoder takes.

    >>> pack([[5, 6, 7], [8]])
    (tensor([5, 6, 7, 8]), tensor([0, 3, 4], dtype=torch.int32), 3)
    """
    packed = sequences if isinstance(sequences, PackedTokens) else PackedTokens(sequences)
    return packed.to(device)


class Encoder(nn.Module):
    """Embeddings and blocks: token ids -> hidden states.

    `dropout` acts on embeddings, attention probabilities and the output of each half of a block, in training. With
    `gradient_checkpointing` set, a block keeps its input alone, and computes the rest again in the backward pass.
    """

    def __init__(self, shape: EncoderShape, dropout: float = 0.0):
        super().__init__()
        if not 0.0 <= dropout < 1.0:
            raise InputError(f"dropout must be at least 0 and below 1, got {dropout}")
        self.shape, self.dropout = shape, dropout
        self.gradient_checkpointing = False
        self.tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.positions = nn.Embedding(shape.max_positions, shape.hidden_size)
        self.norm = nn.LayerNorm(shape.hidden_size, shape.norm_eps)
        self.blocks = nn.ModuleList(Block(shape, dropout) for _ in range(shape.num_layers))
        self.apply(_initialize)

    def forward(self, input_ids_T: Tensor, cu_seqlens: Tensor, max_len: int) -> Tensor:
        """-> hidden_TH. Sequences are cu_seqlens' (see `pack`), none longer than max_len."""
        if max_len > self.shape.max_positions:
            raise ValueError(
                f"the longest sequence has {max_len} tokens, the encoder has {self.shape.max_positions} positions"
            )
        hidden_TH = F.dropout(self._embed(input_ids_T, cu_seqlens), self.dropout, self.training)
        run = _recomputed if self.gradient_checkpointing and self.training and torch.is_grad_enabled() else _run
        for block in self.blocks:
            hidden_TH = run(block, hidden_TH, input_ids_T, cu_seqlens, max_len)
        return hidden_TH

    def _embed(self, input_ids_T: Tensor, cu_seqlens: Tensor) -> Tensor:
        positions_TH = self.positions(positions_in_sequences(cu_seqlens, len(input_ids_T)))
        return residual_norm(self.tokens(input_ids_T), positions_TH, self.norm.weight, self.norm.bias, self.norm.eps)

    def parts(self) -> EncoderParts:
        """What a `kernels.encoder.FrozenEncoder` is made of; raises `CannotFreeze` for a routing by hash."""
        blocks = [block.parts() for block in cast(list[Block], list(self.blocks))]
        shape = self.shape
        return EncoderParts(self.tokens, self.positions, self.norm, blocks, shape.num_heads, shape.activation)


def _run(block: nn.Module, *arguments: Any) -> Tensor:
    return block(*arguments)


def _recomputed(block: nn.Module, *arguments: Any) -> Tensor:
    from torch.utils.checkpoint import checkpoint  # which brings more of torch than most runs need

    return checkpoint(block, *arguments, use_reentrant=False)


class Block(nn.Module):
    """Attention, then a feed-forward part: each is added to its input, and the sum normalised."""

    def __init__(self, shape: EncoderShape, dropout: float):
        super().__init__()
        self.heads, self.dropout = (shape.num_heads, shape.hidden_size // shape.num_heads), dropout
        self.qkv = nn.Linear(shape.hidden_size, 3 * shape.hidden_size)
        self.out = nn.Linear(shape.hidden_size, shape.hidden_size)
        self.attention_norm = nn.LayerNorm(shape.hidden_size, shape.norm_eps)
        self.ffn: nn.Module = FeedForward(shape.hidden_size, shape.ffn_size, shape.activation)
        self.ffn_norm = nn.LayerNorm(shape.hidden_size, shape.norm_eps)

    def forward(self, x_TH: Tensor, input_ids_T: Tensor, cu_seqlens: Tensor, max_len: int) -> Tensor:
        attended_TH = self.attend(self.qkv(x_TH), cu_seqlens, max_len)
        x_TH = self._add(x_TH, self.out(attended_TH), self.attention_norm)
        return self._add(x_TH, self._feed(x_TH, input_ids_T), self.ffn_norm)

    def parts(self) -> BlockParts:
        ffn = FeedForwardParts(self.ffn.up, self.ffn.down) if isinstance(self.ffn, FeedForward) else self.ffn
        if not isinstance(ffn, FeedForwardParts | kernels.MoE):
            raise CannotFreeze(f"a block has {type(ffn).__name__} in the place of its feed-forward part")
        return BlockParts(self.qkv, self.out, self.attention_norm, ffn, self.ffn_norm)

    def attend(self, qkv_TN: Tensor, cu_seqlens: Tensor, max_len: int) -> Tensor:
        """Attention's output, from q, k and v side by side."""
        q_TAD, k_TAD, v_TAD = qkv_TN.unflatten(1, (3, *self.heads)).unbind(1)
        dropout = self.dropout if self.training else 0.0
        return packed_attention(q_TAD, k_TAD, v_TAD, cu_seqlens, max_len, dropout=dropout).flatten(1)

    def _feed(self, x_TH: Tensor, input_ids_T: Tensor) -> Tensor:
        # A hash routes by token id, everything else by the hidden state alone.
        return self.ffn(x_TH, input_ids_T) if isinstance(self.ffn, HashExperts) else self.ffn(x_TH)

    def _add(self, x_TH: Tensor, y_TH: Tensor, norm: nn.LayerNorm) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return residual_norm(x_TH, y_TH, norm.weight, norm.bias, norm.eps, dropout=dropout)


class FeedForward(nn.Module):
    """down(activation(up(x)))"""

    def __init__(self, hidden_size: int, ffn_size: int, activation: str):
        super().__init__()
        self.up = nn.Linear(hidden_size, ffn_size)
        self.down = nn.Linear(ffn_size, hidden_size)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(activate(self.up(x), self.activation))


def positions_in_sequences(cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """Each token's place in its own sequence.

    >>> positions_in_sequences(torch.tensor([0, 3, 4]), 4)
    tensor([0, 1, 2, 0])
    """
    starts_P, lengths_P = cu_seqlens[:-1].long(), cu_seqlens.diff()
    starts_T = starts_P.repeat_interleave(lengths_P, output_size=num_tokens)
    return torch.arange(num_tokens, device=cu_seqlens.device) - starts_T


def _initialize(module: nn.Module) -> None:
    """BERT's start: normal weights of deviation 0.02, zero biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
