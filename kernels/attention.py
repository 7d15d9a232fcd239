"""Attention over sequences laid end to end: no padding is computed, stored or masked."""

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import ops, validation
from kernels.functional import records_gradient
from kernels.reference import wide_dtype


@ops.define(
    "attention_forward(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, int max_len, float dropout, Tensor seed)"
    " -> (Tensor out, Tensor lse)",
    fake=lambda q, k, v, cu_seqlens, max_len, dropout, seed: (
        torch.empty_like(q),
        q.new_empty(q.shape[:2], dtype=wide_dtype(q.dtype)),
    ),
    compute="q",
)
def attention_forward(
    backend: ModuleType,
    q_TAD: Tensor,
    k_TAD: Tensor,
    v_TAD: Tensor,
    cu_seqlens: Tensor,
    max_len: int,
    dropout: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor]:
    return backend.attention(q_TAD, k_TAD, v_TAD, cu_seqlens, max_len, dropout, seed)


@ops.define(
    "attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor cu_seqlens,"
    " int max_len, float dropout, Tensor seed) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)",
    fake=lambda grad, q, k, v, *rest: (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)),
    compute="q",
)
def attention_backward(
    backend: ModuleType,
    grad_TAD: Tensor,
    q_TAD: Tensor,
    k_TAD: Tensor,
    v_TAD: Tensor,
    out_TAD: Tensor,
    lse_TA: Tensor,
    cu_seqlens: Tensor,
    max_len: int,
    dropout: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return backend.attention_backward(
        grad_TAD, q_TAD, k_TAD, v_TAD, out_TAD, lse_TA, cu_seqlens, max_len, dropout, seed
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, cu_seqlens, max_len, dropout, seed):
        out, lse = attention_forward(q, k, v, cu_seqlens, max_len, dropout, seed)
        ctx.save_for_backward(q, k, v, out, lse, cu_seqlens, seed)
        ctx.max_len, ctx.dropout = max_len, dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *saved, cu_seqlens, seed = ctx.saved_tensors
        grads = attention_backward(grad.contiguous(), *saved, cu_seqlens, ctx.max_len, ctx.dropout, seed)
        return *grads, None, None, None, None


def _readable(t_TAD: Tensor) -> Tensor:
    """On a CPU tokens may lie apart, as in a piece of a projection to q, k and v; all else is dense."""
    if t_TAD.device.type == "cpu" and t_TAD.stride()[1:] == (t_TAD.shape[2], 1):
        return t_TAD
    return t_TAD.contiguous()


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_len: int, *, dropout: float = 0.0
) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v within each sequence: q, k, v [tokens, heads, D] -> like q.

    Sequence i is the rows cu_seqlens[i] : cu_seqlens[i + 1] (int32, from 0 to the number of tokens), none longer than
    max_len. `dropout` drops probabilities whenever it is above 0: pass 0 outside of training.
    """
    validation.check_floating("q", q)
    if q.ndim != 3:
        raise ValueError(f"q must be [tokens, heads, head size], got shape {tuple(q.shape)}")
    for argument, tensor in (("k", k), ("v", v)):
        validation.check_shape(argument, tensor, tuple(q.shape))
        if tensor.dtype != q.dtype or tensor.device != q.device:
            raise TypeError(f"{argument} must be {q.dtype} on {q.device} like q, got {tensor.dtype} on {tensor.device}")
    if cu_seqlens.ndim != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64) or not len(cu_seqlens):
        raise ValueError(
            f"cu_seqlens must be a 1-d int tensor of sequence starts and the end, "
            f"got {cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}"
        )
    validation.check_device("cu_seqlens", cu_seqlens, "q is", q.device)
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
    if torch.is_autocast_enabled(q.device.type) and q.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    cu_seqlens = cu_seqlens.int().contiguous()
    q, k, v = _readable(q), _readable(k), _readable(v)
    if dropout > 0.0:  # drawn on the device: a CUDA graph draws a new one at each replay
        seed = torch.randint(2**31, (), device=q.device)
    else:
        seed = cu_seqlens.new_zeros((), dtype=torch.int64)
    if records_gradient(q, k, v):
        return _Attention.apply(q, k, v, cu_seqlens, max_len, dropout, seed)
    return attention_forward(q, k, v, cu_seqlens, max_len, dropout, seed)[0]
