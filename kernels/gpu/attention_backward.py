"""The backward of attention. Twin of `reference.attention_backward`: two launches, no atomics.

One program a tile of queries for grad_q, one a tile of keys for grad_k and grad_v; each computes the scores again.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import reference
from kernels.dropout import Dropout
from kernels.gpu import heuristics
from kernels.gpu.attention import find_sequence, head_rows
from kernels.gpu.dropout import dropout_arguments, kept
from kernels.gpu.launch import input_precision, launch
from kernels.records import Sequences


@triton.jit(do_not_specialize=["T", "A", "D", "tiles", "threshold"])
def _grad_q_kernel(
    p_grad, p_q, p_k, p_v, p_out, p_lse, p_starts, p_seed, p_grad_q, p_delta,
    T, A, D, tiles, threshold: tl.int64, scale, kept_scale,
    DROPOUT: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of grad_q, and delta = <grad, out>, which grad_k needs too."""
    D = D // ALIGN * ALIGN
    head, start, length, tile = find_sequence(p_starts, T, A, tiles)
    if tile * BLOCK_M >= length:
        return
    o_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D)
    m_m = o_m < length
    m_d = o_d < D
    o_out = head_rows(o_m, start, head, A, D)[:, None] + o_d[None, :]
    m_out = m_m[:, None] & m_d[None, :]
    o_row = (start + o_m).to(tl.int64) * A + head
    grad = tl.load(p_grad + o_out, mask=m_out, other=0.0)
    delta = tl.sum(grad.to(tl.float32) * tl.load(p_out + o_out, mask=m_out, other=0.0).to(tl.float32), 1)
    tl.store(p_delta + o_row, delta, mask=m_m)
    q = tl.load(p_q + o_out, mask=m_out, other=0.0)
    lse = tl.load(p_lse + o_row, mask=m_m, other=0.0) * 1.4426950408889634
    o_keys = head_rows(o_n, start, head, A, D)[None, :] + o_d[:, None]
    p_k += o_keys
    p_v += o_keys
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for n in range(0, length, BLOCK_N):
        m_n = n + o_n < length
        k = tl.load(p_k, mask=m_n[None, :] & m_d[:, None], other=0.0)
        v = tl.load(p_v, mask=m_n[None, :] & m_d[:, None], other=0.0)
        probs = tl.exp2(tl.dot(q, k, input_precision=PRECISION) * (scale * 1.4426950408889634) - lse[:, None])
        grad_probs = tl.dot(grad, v, input_precision=PRECISION)
        if DROPOUT:
            grad_probs *= kept(tl.load(p_seed), o_row[:, None], (n + o_n)[None, :], threshold, kept_scale)
        grad_scores = probs * (grad_probs - delta[:, None])
        acc = tl.dot(grad_scores.to(k.dtype), tl.trans(k), acc, input_precision=PRECISION)
        p_k += BLOCK_N * A * D
        p_v += BLOCK_N * A * D
    tl.store(p_grad_q + o_out, acc * scale, mask=m_out)


@triton.jit(do_not_specialize=["T", "A", "D", "tiles", "threshold"])
def _grad_kv_kernel(
    p_grad, p_q, p_k, p_v, p_lse, p_delta, p_starts, p_seed, p_grad_k, p_grad_v,
    T, A, D, tiles, threshold: tl.int64, scale, kept_scale,
    DROPOUT: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of grad_k and grad_v. Scores are transposed, [keys, queries]: so they enter the products as they are."""
    D = D // ALIGN * ALIGN
    head, start, length, tile = find_sequence(p_starts, T, A, tiles)
    if tile * BLOCK_M >= length:
        return
    o_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    o_out = head_rows(o_m, start, head, A, D)[:, None] + o_d[None, :]
    m_out = (o_m < length)[:, None] & m_d[None, :]
    k = tl.load(p_k + o_out, mask=m_out, other=0.0)
    v = tl.load(p_v + o_out, mask=m_out, other=0.0)
    o_queries = head_rows(o_n, start, head, A, D)
    p_q += o_queries[:, None] + o_d[None, :]
    p_grad += o_queries[:, None] + o_d[None, :]
    grad_k = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    grad_v = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for n in range(0, length, BLOCK_N):
        m_n = n + o_n < length
        o_row = (start + n + o_n).to(tl.int64) * A + head
        q = tl.load(p_q, mask=m_n[:, None] & m_d[None, :], other=0.0)
        grad = tl.load(p_grad, mask=m_n[:, None] & m_d[None, :], other=0.0)
        lse = tl.load(p_lse + o_row, mask=m_n, other=float("inf")) * 1.4426950408889634
        delta = tl.load(p_delta + o_row, mask=m_n, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * 1.4426950408889634)
        probs = tl.exp2(scores - lse[None, :])
        grad_probs = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
        weight = probs
        if DROPOUT:
            factor = kept(tl.load(p_seed), o_row[None, :], o_m[:, None], threshold, kept_scale)
            weight = probs * factor
            grad_probs *= factor
        grad_v = tl.dot(weight.to(grad.dtype), grad, grad_v, input_precision=PRECISION)
        grad_scores = probs * (grad_probs - delta[None, :])
        grad_k = tl.dot(grad_scores.to(q.dtype), q, grad_k, input_precision=PRECISION)
        p_q += BLOCK_N * A * D
        p_grad += BLOCK_N * A * D
    tl.store(p_grad_k + o_out, grad_k * scale, mask=m_out)
    tl.store(p_grad_v + o_out, grad_v, mask=m_out)


def attention_backward(
    grad_TAD: Tensor,
    q_TAD: Tensor,
    k_TAD: Tensor,
    v_TAD: Tensor,
    out_TAD: Tensor,
    lse_TA: Tensor,
    sequences: Sequences,
    dropout: Dropout,
) -> tuple[Tensor, Tensor, Tensor]:
    cu_seqlens, max_len = sequences
    q_TAD, k_TAD, v_TAD = q_TAD.contiguous(), k_TAD.contiguous(), v_TAD.contiguous()
    num_tokens, num_heads, size = q_TAD.shape
    if not heuristics.attention_fits(size, q_TAD.dtype):
        return reference.attention_backward(grad_TAD, q_TAD, k_TAD, v_TAD, out_TAD, lse_TA, sequences, dropout)
    grad_q_TAD, grad_k_TAD, grad_v_TAD = (torch.empty_like(tensor) for tensor in (q_TAD, k_TAD, v_TAD))
    delta_TA = torch.empty_like(lse_TA)
    precision = input_precision()
    block_d = heuristics.power_of_2(size, 16)
    tile = heuristics.attention_backward_tile(max_len, block_d, q_TAD.dtype, precision)
    tiles = heuristics.cdiv(max_len, tile.m)
    programs = tiles * num_heads * (len(cu_seqlens) - 1) if num_tokens else 0
    threshold, kept_scale = dropout_arguments(dropout.rate)
    numbers = (num_tokens, num_heads, size, tiles, threshold, size**-0.5, kept_scale)
    constants: dict[str, Any] = dict(
        tile=tile, DROPOUT=dropout.rate > 0, ALIGN=heuristics.alignment(size), PRECISION=precision,
        BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_D=block_d,
    )  # fmt: skip
    launch(
        _grad_q_kernel, programs, grad_TAD, q_TAD, k_TAD, v_TAD, out_TAD, lse_TA, cu_seqlens, dropout.seed,
        grad_q_TAD, delta_TA, *numbers, **constants,
    )  # fmt: skip
    launch(
        _grad_kv_kernel, programs, grad_TAD, q_TAD, k_TAD, v_TAD, lse_TA, delta_TA, cu_seqlens, dropout.seed,
        grad_k_TAD, grad_v_TAD, *numbers, **constants,
    )  # fmt: skip
    return grad_q_TAD, grad_k_TAD, grad_v_TAD
