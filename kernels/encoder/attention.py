"""Attention over sequences laid end to end: no padding is computed, stored or masked."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import autocast, ops, validation
from kernels.contract import Backend
from kernels.dropout import Dropout, draw_dropout
from kernels.functional import records_gradient
from kernels.ops import empty_like
from kernels.records import Sequences, pack
from kernels.reference import wide_dtype

QKV = ("q_TAD", "k_TAD", "v_TAD")


class Attended(NamedTuple):
    out_TAD: Tensor
    lse_TA: Tensor
    """The log-sum-exp of the scores."""


@ops.define(
    fake=lambda q_TAD, *rest: Attended(
        empty_like(q_TAD), q_TAD.new_empty(q_TAD.shape[:2], dtype=wide_dtype(q_TAD.dtype))
    ),
    compute="q_TAD",
    strided=QKV,
)
def attention_forward(
    backend: Backend, q_TAD: Tensor, k_TAD: Tensor, v_TAD: Tensor, sequences: Sequences, dropout: Dropout
) -> Attended:
    _check_lengths(sequences, len(q_TAD))
    return Attended(*backend.attention(q_TAD, k_TAD, v_TAD, sequences, dropout))


def _check_lengths(sequences: Sequences, num_tokens: int) -> None:
    """Here, where a compiler does not look. On a GPU, looking would wait for it."""
    cu_seqlens, max_len = sequences
    if max_len < 0:
        raise ValueError(f"max_len must be at least 0, got {max_len}")
    if cu_seqlens.device.type == "cpu":
        longest = validation.longest_sequence(cu_seqlens, num_tokens)
        if longest > max_len:
            raise ValueError(f"cu_seqlens has a sequence of {longest} tokens, max_len is {max_len}")


class AttentionGrads(NamedTuple):
    q_TAD: Tensor
    k_TAD: Tensor
    v_TAD: Tensor


@ops.define(
    fake=lambda grad_TAD, q_TAD, k_TAD, v_TAD, *rest: AttentionGrads(*map(empty_like, (q_TAD, k_TAD, v_TAD))),
    compute="q_TAD",
    strided=QKV,
)
def attention_backward(
    backend: Backend,
    grad_TAD: Tensor,
    q_TAD: Tensor,
    k_TAD: Tensor,
    v_TAD: Tensor,
    attended: Attended,
    sequences: Sequences,
    dropout: Dropout,
) -> AttentionGrads:
    return AttentionGrads(*backend.attention_backward(grad_TAD, q_TAD, k_TAD, v_TAD, *attended, sequences, dropout))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_TAD, k_TAD, v_TAD, cu_seqlens, max_len, rate, seed):
        sequences, dropout = Sequences(cu_seqlens, max_len), Dropout(rate, seed)
        attended = attention_forward(q_TAD, k_TAD, v_TAD, sequences, dropout)
        ctx.save_for_backward(q_TAD, k_TAD, v_TAD, *attended, cu_seqlens, seed)
        ctx.max_len, ctx.rate = max_len, rate
        return attended.out_TAD

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TAD):
        *qkv, attended, cu_seqlens, seed = pack(ctx.saved_tensors, Tensor, Tensor, Tensor, Attended, Tensor, Tensor)
        sequences, dropout = Sequences(cu_seqlens, ctx.max_len), Dropout(ctx.rate, seed)
        grads = attention_backward(grad_TAD, *qkv, attended, sequences, dropout)
        return *grads, None, None, None, None


def _readable(t_TAD: Tensor) -> Tensor:
    """On a CPU tokens may lie apart, as in a part of a projection to q, k and v; all else is dense."""
    if t_TAD.device.type == "cpu" and t_TAD.stride()[1:] == (t_TAD.shape[2], 1):
        return t_TAD
    return t_TAD.contiguous()


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_len: int, *, dropout: float = 0.0
) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v within each sequence: q, k, v [tokens, heads, D] -> like q.

    Sequence i is the rows cu_seqlens[i] : cu_seqlens[i + 1] (int32, from 0 to the number of tokens), none longer than
    max_len: on a GPU, which a check would wait for, this is not checked; rows that no sequence covers hold anything.
    `dropout` drops probabilities whenever it is above 0: pass 0 outside of training.
    """
    validation.check_floating("q", q)
    if q.ndim != 3 or q.shape[2] == 0:
        raise ValueError(f"q must be [tokens, heads, head size], the size at least 1, got shape {tuple(q.shape)}")
    for argument, tensor in (("k", k), ("v", v)):
        validation.check_shape(argument, tensor, tuple(q.shape))
        if tensor.dtype != q.dtype or tensor.device != q.device:
            raise TypeError(f"{argument} must be {q.dtype} on {q.device} like q, got {tensor.dtype} on {tensor.device}")
    starts = validation.check_starts(cu_seqlens)
    validation.check_device("cu_seqlens", cu_seqlens, "q is", q.device)
    if not isinstance(max_len, int | torch.SymInt):
        raise TypeError(f"max_len must be an int, got {max_len!r}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
    if autocast.is_on(q.device.type) and q.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    sequences, dropped = Sequences(starts, max_len), draw_dropout(dropout, q.device)
    q, k, v = _readable(q), _readable(k), _readable(v)
    if records_gradient(q, k, v):
        return _Attention.apply(q, k, v, *sequences, *dropped)
    return attention_forward(q, k, v, sequences, dropped).out_TAD
