"""Gradients of the expert weights. Twins of `reference.down_weight_grad`, `.up_weight_grad` and their `all_` forms."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import heuristics
from kernels.gpu.launch import input_precision, launch
from kernels.gpu.parts import sum_parts
from kernels.gpu.tiles import aligned, find_slots, place, store_rows
from kernels.routing import Plan


@triton.jit(do_not_specialize=["S", "E", "K", "M", "N", "PARTS"])
def _weight_grad_kernel(
    p_left, p_right, p_order, p_offsets, p_weights, p_grad, p_grad_bias, p_parts, S, E, K, M, N, PARTS,
    ROUTED: tl.constexpr, LEFT_IS_TOKENS: tl.constexpr, ALIGN: tl.constexpr, EVEN_M: tl.constexpr, EVEN_N: tl.constexpr,
    PRECISION: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The sum over an expert's rows of left ⊗ right: one tile of [M, N], and of the bias gradient [M].

    One side lies in plan order, the other is a matrix of tokens whose rows are gathered. The bias gradient, the sum of
    left (times the gate weight), is a column of programs of its own: inside the others it would cost them registers.

    Where there are few programs, each expert's rows are cut into PARTS, each of which is summed up for itself.
    """
    M, N = aligned(M, ALIGN), aligned(N, ALIGN)
    rows = tl.cdiv(M, BLOCK_M)
    columns = tl.cdiv(N, BLOCK_N)
    if p_grad_bias is not None:
        columns += 1
    pid = tl.program_id(0)
    expert = pid // (rows * columns)
    part = 0
    if p_parts is not None:
        part = expert % PARTS
        expert = expert // PARTS
    row, column = place(pid % (rows * columns), rows, columns, GROUP)
    if ROUTED:
        start = tl.load(p_offsets + expert)
        stop = tl.load(p_offsets + expert + 1)
    else:
        start = 0
        stop = S
    kind = p_grad.dtype.element_ty
    if p_parts is not None:
        span = tl.cdiv(tl.cdiv(stop - start, PARTS), BLOCK_K) * BLOCK_K
        start = tl.minimum(start + part * span, stop)
        stop = tl.minimum(start + span, stop)
        size = M.to(tl.int64) * N * E
        p_grad = p_parts + part * size
        if p_grad_bias is not None:
            p_grad += part * E * M
            p_grad_bias = p_grad + size
    o_m = row * BLOCK_M + tl.arange(0, BLOCK_M)
    o_k = tl.arange(0, BLOCK_K)
    if p_grad_bias is not None:  # noqa: SIM102 (the outer one is decided by the compiler)
        if column == columns - 1:
            total = tl.zeros([BLOCK_M], tl.float32)
            for k in range(start, stop, BLOCK_K):
                m_k = k + o_k < stop
                plan, slot, token = find_slots(p_order, tl.minimum(k + o_k, stop - 1), expert, E, K, ROUTED)
                o_left = token if LEFT_IS_TOKENS else plan
                mask = m_k[:, None] & (o_m < M)[None, :]
                left = tl.load(p_left + o_left[:, None] * M + o_m[None, :], mask=mask, other=0.0).to(tl.float32)
                if p_weights is not None:
                    left *= tl.load(p_weights + slot)[:, None]
                total += tl.sum(left, 0)
            tl.store(p_grad_bias + expert * M + o_m, total, mask=o_m < M)
            return

    o_n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(start, stop, BLOCK_K):
        m_k = k + o_k < stop
        plan, slot, token = find_slots(p_order, tl.minimum(k + o_k, stop - 1), expert, E, K, ROUTED)
        o_left = token if LEFT_IS_TOKENS else plan
        o_right = plan if LEFT_IS_TOKENS else token
        m_left = m_k[None, :]
        if not EVEN_M:
            m_left = m_left & (o_m < M)[:, None]
        m_right = m_k[:, None]
        if not EVEN_N:
            m_right = m_right & (o_n < N)[None, :]
        left = tl.load(p_left + o_left[None, :] * M + o_m[:, None], mask=m_left, other=0.0)
        right = tl.load(p_right + o_right[:, None] * N + o_n[None, :], mask=m_right, other=0.0)
        acc = tl.dot(left.to(kind), right.to(kind), acc, input_precision=PRECISION)
    p_grad += expert.to(tl.int64) * M * N
    store_rows(
        p_grad, o_m.to(tl.int64), o_m < M, acc.to(p_grad.dtype.element_ty), column * BLOCK_N, N, BLOCK_M, BLOCK_N
    )


def launch_weight_grad(
    left: Tensor,
    right: Tensor,
    plan: Plan | None,
    weights_TK: Tensor | None,
    num_experts: int,
    top_k: int,
    has_bias: bool,
    left_is_tokens: bool,
) -> tuple[Tensor, Tensor | None]:
    """-> [E, M, N], [E, M]: of the planned slots, or without a plan, of every token and expert."""
    order_S, offsets_O = plan or (None, None)
    planned = right if left_is_tokens else left
    num_rows = (len(left) if order_S is None else len(order_S)) if len(left) else 0
    rows, columns = left.shape[-1], right.shape[-1]
    if num_rows == 0:
        grad = planned.new_zeros(num_experts, rows, columns)
        return grad, planned.new_zeros(num_experts, rows) if has_bias else None
    grad = planned.new_empty(num_experts, rows, columns)
    grad_bias = planned.new_empty(num_experts, rows) if has_bias else None
    precision = input_precision()
    tile = heuristics.weight_grad_tile(num_experts, rows, columns, planned.dtype, precision)
    bands, columns_of_tiles = num_experts * heuristics.cdiv(rows, tile.m), heuristics.cdiv(columns, tile.n)
    depth = num_rows if order_S is None else heuristics.cdiv(num_rows, num_experts)
    num_parts = heuristics.weight_grad_parts(bands * columns_of_tiles, depth)
    outputs = [grad] if grad_bias is None else [grad, grad_bias]
    parts = None
    if num_parts > 1:
        parts = planned.new_empty(num_parts, sum(output.numel() for output in outputs), dtype=torch.float32)
    launch(
        _weight_grad_kernel, num_parts * bands * (columns_of_tiles + has_bias),
        left, right, order_S, offsets_O, weights_TK, grad, grad_bias, parts,
        num_rows, num_experts, top_k, rows, columns, num_parts,
        tile=tile, ROUTED=order_S is not None, LEFT_IS_TOKENS=left_is_tokens,
        ALIGN=heuristics.alignment(rows, columns), EVEN_M=rows % tile.m == 0, EVEN_N=columns % tile.n == 0,
        PRECISION=precision, GROUP=heuristics.ROW_GROUP, BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k,
    )  # fmt: skip
    if parts is not None:
        sum_parts(parts, outputs)
    return grad, grad_bias


def down_weight_grad(
    grad_y_TH: Tensor, weighted_act_SF: Tensor, plan: Plan, weights_TK: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor | None]:
    num_experts, top_k = len(plan.offsets_O) - 1, weights_TK.shape[1]
    return launch_weight_grad(
        grad_y_TH, weighted_act_SF, plan, weights_TK, num_experts, top_k, has_bias, left_is_tokens=True
    )


def up_weight_grad(
    x_TH: Tensor, grad_pre_SU: Tensor, plan: Plan, top_k: int, has_bias: bool
) -> tuple[Tensor, Tensor | None]:
    num_experts = len(plan.offsets_O) - 1
    return launch_weight_grad(grad_pre_SU, x_TH, plan, None, num_experts, top_k, has_bias, left_is_tokens=False)
