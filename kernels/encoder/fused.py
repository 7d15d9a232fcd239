"""An encoder, fused for inference on a CPU: all of it, or embeddings, what lies between two attentions, what follows.

They need no autograd and no eager twin: an encoder runs its modules one by one where `can_fuse` says no, as it does in
training. A backend may have them, as `encode`, `retrieve`, `embed`, `block` and `pool`. Shape suffixes: see
`routing.py`; P sequences, N the size of what follows a block.
"""

from collections.abc import Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kernels import dispatch, validation
from kernels.activations import GATED
from kernels.functional import compute_dtype
from kernels.layers import SBMoE
from kernels.routing import ALL
from kernels.sums import counts_now


def can_fuse(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the functions below can run on this device, computing in this type; under a compiler they cannot."""
    return not torch.compiler.is_compiling() and "block" in dispatch.pick(device, dtype).fusions


def fused_embedding(
    input_ids_T: Tensor, cu_seqlens: Tensor, tokens: nn.Embedding, positions: nn.Embedding, norm: nn.LayerNorm
) -> Tensor:
    """norm(tokens(id) + positions(its place in its sequence)) -> [T, H] in fp32."""
    cu_seqlens = _check_sequences(input_ids_T, cu_seqlens, positions)
    backend = _backend(input_ids_T.device, torch.float32)
    return backend.embed(input_ids_T, cu_seqlens, tokens.weight, positions.weight, norm)


class DenseBlock(NamedTuple):
    """The modules of a block without experts."""

    qkv: nn.Linear
    out: nn.Linear
    norm: nn.LayerNorm
    up: nn.Linear
    down: nn.Linear
    ffn_norm: nn.LayerNorm


class DenseEncoder(NamedTuple):
    """An encoder without experts: the modules of `fused_embedding`, then its blocks, at least one."""

    tokens: nn.Embedding
    positions: nn.Embedding
    norm: nn.LayerNorm
    blocks: Sequence[DenseBlock]
    num_heads: int
    activation: str = "gelu"


def fused_encoder(
    input_ids_T: Tensor, cu_seqlens: Tensor, encoder: DenseEncoder, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Token ids -> hidden_TH in fp32, with products in `dtype`.

    What `fused_embedding`, `packed_attention` and `fused_block` give one after the other, bit for bit, without a return
    to Python between them: each thread takes a few sequences through all blocks.
    """
    cu_seqlens = _check_encoder(input_ids_T, cu_seqlens, encoder)
    return _backend(input_ids_T.device, dtype).encode(input_ids_T, cu_seqlens, encoder, dtype)


def fused_retriever(
    input_ids_T: Tensor,
    cu_seqlens: Tensor,
    encoder: DenseEncoder,
    block: nn.Module | None = None,
    *,
    normalize: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor | None:
    """Token ids -> embeddings [P, H] in fp32: `fused_encoder`, then `fused_pooling`, bit for bit, in one op.

    Hidden states are never written as a tensor. None where `fused_pooling` returns None.
    """
    tail = _read_block(block)
    if tail is None:
        return None
    cu_seqlens = _check_encoder(input_ids_T, cu_seqlens, encoder)
    backend = _backend(input_ids_T.device, dtype)
    return backend.retrieve(input_ids_T, cu_seqlens, encoder, dtype, *tail, normalize)


def fused_block(
    x_TH: Tensor,
    y_TH: Tensor | None = None,
    *,
    out: nn.Linear | None = None,
    norm: nn.LayerNorm | None = None,
    up: nn.Linear | None = None,
    down: nn.Linear | None = None,
    ffn_norm: nn.LayerNorm | None = None,
    following: nn.Linear | None = None,
    activation: str = "gelu",
    dtype: torch.dtype = torch.float32,
    into: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """-> hidden_TH in fp32 and, in `dtype`, following(hidden)_TN, with products in `dtype`.

    hidden = norm(x + out(y)), then hidden = ffn_norm(hidden + down(activation(up(hidden)))). Each part is left out
    where it is not given: `out` where y is projected already, y and `norm` where there was no attention, the other
    three where experts take their place. `into` is where hidden_TH is to be written. A tile of tokens goes through all
    of it without leaving a cache.
    """
    _check_parts(x_TH, y_TH, out, norm, up, down, ffn_norm, following, activation)
    if into is not None and (into.dtype != torch.float32 or into.shape != x_TH.shape or not into.is_contiguous()):
        raise ValueError(
            f"into must be contiguous, in float32 and like x, {tuple(x_TH.shape)}; got {tuple(into.shape)}"
        )
    backend = _backend(x_TH.device, dtype)
    return backend.block(x_TH, y_TH, out, norm, up, down, ffn_norm, following, activation, dtype, into)


def fused_pooling(
    x_TH: Tensor, cu_seqlens: Tensor, block: nn.Module | None = None, *, normalize: bool = False
) -> Tensor | None:
    """What follows an encoder -> [P, H] in fp32: the mean over the rows of each sequence, zeros for one without; the
    block, if there is one; a length of 1, if it is asked for.

    None if a forward of the block would do anything else now (draw noise, count or record its routing, scale its mix),
    in a type that no backend fuses, or if it is no SBMoE. For a query, the steps between would cost more than what they
    do.
    """
    tail = _read_block(block)
    if tail is None:
        return None
    return _backend(x_TH.device, torch.float32).pool(x_TH, cu_seqlens.int().contiguous(), *tail, normalize)


# As attributes of a module, each would be looked for in Python, which a query feels.
_READ = itemgetter("training", "recorder", "combine", "number_chosen", "activation", "router_kind", "renormalize")


def _read_block(block: nn.Module | None) -> tuple[tuple[Any, ...], tuple[Any, ...], torch.dtype] | None:
    """-> what `pool` wants of it: parameters, settings, the type of its products."""
    if block is None:
        return (), (), torch.float32
    if not isinstance(block, SBMoE):
        return None
    training, recorder, combine, number_chosen, activation, router, renormalize = _READ(vars(block))
    if training or recorder is not None or combine != "residual" or number_chosen == ALL or counts_now():
        return None
    experts = block.expert_weights()
    dtype = compute_dtype(experts[0])
    if "pool" not in dispatch.pick(experts[0].device, dtype).fusions:
        return None
    return (*block.gate_weights(), *experts), (number_chosen, activation, router, renormalize), dtype


def _backend(device, dtype):
    backend = dispatch.pick(device, dtype)
    if "block" not in backend.fusions:
        raise RuntimeError(f"backend {backend.name!r} fuses nothing; ask can_fuse first")
    return backend


def _check_sequences(input_ids_T, cu_seqlens, positions) -> Tensor:
    """-> cu_seqlens as a backend wants it."""
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != len(input_ids_T):
        raise ValueError(f"cu_seqlens must go from 0 to {len(input_ids_T)}, got {bounds[0]} to {bounds[-1]}")
    lengths = [last - first for first, last in pairwise(bounds)]
    if min(lengths, default=0) < 0:
        raise ValueError(f"cu_seqlens must not decrease, got {bounds}")
    longest = max(lengths, default=0)
    if longest > positions.num_embeddings:
        raise ValueError(
            f"cu_seqlens has a sequence of {longest} tokens, there are {positions.num_embeddings} positions"
        )
    return cu_seqlens.int().contiguous()


def _check_encoder(input_ids_T, cu_seqlens, encoder) -> Tensor:
    """-> cu_seqlens as a backend wants it."""
    if not encoder.blocks:
        raise ValueError("blocks must not be empty; fused_embedding is an encoder without any")
    _check_not_gated(encoder.activation)
    hidden = encoder.tokens.embedding_dim
    if hidden % encoder.num_heads:
        raise ValueError(f"num_heads must divide the hidden size {hidden}, got {encoder.num_heads}")
    return _check_sequences(input_ids_T, cu_seqlens, encoder.positions)


def _check_not_gated(activation) -> None:
    if activation in GATED:
        raise ValueError(f"activation must not be gated, got {activation!r}")


def _check_parts(x_TH, y_TH, out, norm, up, down, ffn_norm, following, activation) -> None:
    validation.check_floating("x", x_TH)
    if x_TH.ndim != 2:
        raise ValueError(f"x must be [tokens, hidden size], got shape {tuple(x_TH.shape)}")
    if y_TH is not None:
        validation.check_shape("y", y_TH, tuple(x_TH.shape))
    if (y_TH is None) != (norm is None) or (y_TH is None and out is not None):
        raise ValueError("y and norm go together, and out with them")
    if not (up is None) == (down is None) == (ffn_norm is None):
        raise ValueError("up, down and ffn_norm go together")
    _check_not_gated(activation)
    hidden = x_TH.shape[1]
    sizes = {"out": (out, (hidden, hidden)), "norm": (norm, (hidden,)), "ffn_norm": (ffn_norm, (hidden,))}
    if up is not None:
        sizes |= {"up": (up, (len(up.weight), hidden)), "down": (down, (hidden, len(up.weight)))}
    if following is not None:
        sizes["following"] = (following, (len(following.weight), hidden))
    for name, (module, shape) in sizes.items():
        if module is not None:
            validation.check_shape(f"{name}.weight", module.weight, shape)
