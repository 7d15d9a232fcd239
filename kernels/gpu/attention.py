"""Attention over sequences laid end to end. Twin of `reference.attention`.

Where torch's own variable-length attention takes (16 bits, head sizes that are multiples of 8, no dropout), it runs;
the kernel here is for what it does not: fp32, odd head sizes (312 / 12 = 26), and a dropout mask that is a function of
its place. The backward is always ours: torch's adds up the gradient of q with atomics, in whatever order they come.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import reference
from kernels.dropout import Dropout
from kernels.gpu import heuristics
from kernels.gpu.dropout import dropout_arguments, kept
from kernels.gpu.launch import input_precision, launch
from kernels.records import Sequences


@triton.jit
def find_sequence(p_starts, T, A, tiles):
    """Program -> head, first token of its sequence, its length, and which tile of it. Tiles of a head are neighbours:
    they read the same keys. On a GPU nobody has looked at the starts, so the sequence is cut to the T tokens."""
    pid = tl.program_id(0)
    sequence = pid // (tiles * A)
    start = tl.maximum(tl.load(p_starts + sequence), 0)
    stop = tl.minimum(tl.load(p_starts + sequence + 1), T)
    return pid // tiles % A, start, stop - start, pid % tiles


@triton.jit
def head_rows(o_l, start, head, A, D):
    """Where rows o_l of a sequence begin in a [T, A, D] tensor, for one head."""
    return ((start + o_l).to(tl.int64) * A + head) * D


@triton.jit(do_not_specialize=["T", "A", "D", "tiles", "threshold"])
def _attention_kernel(
    p_q, p_k, p_v, p_starts, p_seed, p_out, p_lse, T, A, D, tiles, threshold: tl.int64, scale, kept_scale,
    DROPOUT: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of queries against all keys of its sequence, with a running maximum; `scale` includes log2 e."""
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
    q = tl.load(p_q + o_out, mask=m_out, other=0.0)
    o_keys = head_rows(o_n, start, head, A, D)
    p_k += o_keys[None, :] + o_d[:, None]
    p_v += o_keys[:, None] + o_d[None, :]
    highest = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for n in range(0, length, BLOCK_N):
        m_n = n + o_n < length
        k = tl.load(p_k, mask=m_n[None, :] & m_d[:, None], other=0.0)
        scores = tl.where(m_n[None, :], tl.dot(q, k, input_precision=PRECISION) * scale, -float("inf"))
        raised = tl.maximum(highest, tl.max(scores, 1))
        probs = tl.exp2(scores - raised[:, None])
        shrink = tl.exp2(highest - raised)
        total = total * shrink + tl.sum(probs, 1)
        if DROPOUT:
            o_row = (start + o_m).to(tl.int64) * A + head
            probs *= kept(tl.load(p_seed), o_row[:, None], (n + o_n)[None, :], threshold, kept_scale)
        v = tl.load(p_v, mask=m_n[:, None] & m_d[None, :], other=0.0)
        acc = tl.dot(probs.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        highest = raised
        p_k += BLOCK_N * A * D
        p_v += BLOCK_N * A * D
    tl.store(p_out + o_out, acc / total[:, None], mask=m_out)
    lse = (highest + tl.log2(total)) * 0.6931471805599453
    tl.store(p_lse + (start + o_m).to(tl.int64) * A + head, lse, mask=m_m)


def _torchs_own() -> Callable[..., Any] | None:
    """Torch's attention over sequences laid end to end, None where this version has none of these names."""
    try:
        from torch.nn.attention.varlen import AuxRequest, varlen_attn  # brings torch._dynamo: seconds of a start
    except ImportError:
        return None
    return functools.partial(varlen_attn, return_aux=AuxRequest(lse=True))


def _torch_takes(q_TAD: Tensor, rate: float) -> bool:
    return (
        q_TAD.is_cuda
        and torch.version.hip is None  # whose log-sum-exp is of another shape
        and q_TAD.element_size() == 2
        and q_TAD.shape[2] % 8 == 0
        and q_TAD.shape[2] <= 256
        and (rate == 0.0 and q_TAD.numel() > 0)
    )


def attention(
    q_TAD: Tensor, k_TAD: Tensor, v_TAD: Tensor, sequences: Sequences, dropout: Dropout
) -> tuple[Tensor, Tensor]:
    cu_seqlens, max_len = sequences
    q_TAD, k_TAD, v_TAD = q_TAD.contiguous(), k_TAD.contiguous(), v_TAD.contiguous()
    torchs_own = _torchs_own() if _torch_takes(q_TAD, dropout.rate) else None
    if torchs_own is not None:
        out_TAD, lse_AT = torchs_own(q_TAD, k_TAD, v_TAD, cu_seqlens, cu_seqlens, max_len, max_len)
        return out_TAD, lse_AT.t().contiguous()
    num_tokens, num_heads, size = q_TAD.shape
    if not heuristics.attention_fits(size, q_TAD.dtype):
        return reference.attention(q_TAD, k_TAD, v_TAD, sequences, dropout)
    out_TAD = torch.empty_like(q_TAD)
    lse_TA = q_TAD.new_empty(q_TAD.shape[:2], dtype=torch.float32)
    precision = input_precision()
    block_d = heuristics.power_of_2(size, 16)
    tile = heuristics.attention_tile(max_len, block_d, q_TAD.dtype, precision)
    tiles = heuristics.cdiv(max_len, tile.m)
    threshold, kept_scale = dropout_arguments(dropout.rate)
    launch(
        _attention_kernel, tiles * num_heads * (len(cu_seqlens) - 1) if num_tokens else 0,
        q_TAD, k_TAD, v_TAD, cu_seqlens, dropout.seed, out_TAD, lse_TA,
        num_tokens, num_heads, size, tiles, threshold, size**-0.5 * math.log2(math.e), kept_scale,
        tile=tile, DROPOUT=dropout.rate > 0, ALIGN=heuristics.alignment(size), PRECISION=precision,
        BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_D=block_d,
    )  # fmt: skip
    return out_TAD, lse_TA
