"""The parts of an encoder, fused for inference on a CPU: embeddings, what lies between two attentions, the mean.

They need no autograd and no eager twin: an encoder runs its modules one by one where `can_fuse` says no, as it does in
training. A backend may have them, as `embed`, `block` and `mean`. Shape suffixes: see `routing.py`; P sequences, N the
size of what follows a block.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from kernels import dispatch, validation
from kernels.reference import GATED


def can_fuse(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the functions below can run on this device, computing in this type; under a compiler they cannot."""
    return not torch.compiler.is_compiling() and hasattr(dispatch.pick(device, dtype), "block")


def fused_embedding(
    input_ids_T: Tensor, cu_seqlens: Tensor, tokens: nn.Embedding, positions: nn.Embedding, norm: nn.LayerNorm
) -> Tensor:
    """norm(tokens(id) + positions(its place in its sequence)) -> [T, H] in fp32."""
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != len(input_ids_T):
        raise ValueError(f"cu_seqlens must go from 0 to {len(input_ids_T)}, got {bounds[0]} to {bounds[-1]}")
    longest = max((last - first for first, last in pairwise(bounds)), default=0)
    if longest > positions.num_embeddings:
        raise ValueError(
            f"cu_seqlens has a sequence of {longest} tokens, there are {positions.num_embeddings} positions"
        )
    backend = _backend(input_ids_T.device, torch.float32)
    return backend.embed(input_ids_T, cu_seqlens.int().contiguous(), tokens.weight, positions.weight, norm)


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


def fused_mean(x_TH: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The mean over the rows of each sequence, zeros for one without -> [P, H] in fp32."""
    return _backend(x_TH.device, torch.float32).mean(x_TH, cu_seqlens.int().contiguous())


def _backend(device, dtype):
    backend = dispatch.pick(device, dtype)
    if not hasattr(backend, "block"):
        raise RuntimeError(f"backend {backend.name!r} fuses nothing; ask can_fuse first")
    return backend


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
    if activation in GATED:
        raise ValueError(f"activation must not be gated, got {activation!r}")
    hidden = x_TH.shape[1]
    sizes = {"out": (out, (hidden, hidden)), "norm": (norm, (hidden,)), "ffn_norm": (ffn_norm, (hidden,))}
    if up is not None:
        sizes |= {"up": (up, (len(up.weight), hidden)), "down": (down, (hidden, len(up.weight)))}
    if following is not None:
        sizes["following"] = (following, (len(following.weight), hidden))
    for name, (module, shape) in sizes.items():
        if module is not None:
            validation.check_shape(f"{name}.weight", module.weight, shape)
