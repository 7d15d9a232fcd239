"""The backward of the experts but for the weights. Twins of `reference.down_backward` and `.up_backward`."""

import triton
import triton.language as tl
from torch import Tensor

from kernels.activations import GATED
from kernels.gpu import heuristics
from kernels.gpu.activations import base, function, slope
from kernels.gpu.launch import input_precision, launch
from kernels.gpu.tiles import aligned, find_rows, find_slots, halves, multiply, place, store_rows
from kernels.records import ExpertWeights
from kernels.routing import Plan


@triton.jit
def _through_activation(
    grad_act, p_pre, p_grad_pre, p_weighted_act, o_row, m_row, weight, first_f, F, width,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Stores grad_pre and weighted_act of some columns; returns their part of <grad_act, act>."""
    o_f = first_f + tl.arange(0, COLUMNS)
    m_out = m_row[:, None] & (o_f < F)[None, :]
    o_act = o_row[:, None] * F + o_f[None, :]
    o_pre = o_row[:, None] * width + o_f[None, :]
    out = p_pre.dtype.element_ty
    pre = tl.load(p_pre + o_pre, mask=m_out, other=0.0).to(tl.float32)
    pre = tl.where(m_out, pre, grad_act)  # says that act belongs in grad_act's layout: else it is computed in two
    act = function(pre, ACTIVATION)
    if GATED:
        value = tl.load(p_pre + o_pre + F, mask=m_out, other=0.0).to(tl.float32)
        value = tl.where(m_out, value, grad_act)
        dot = tl.sum(tl.where(m_out, grad_act * act * value, 0.0), 1)
        grad_act *= weight[:, None]
        grad_value = (grad_act * act).to(out)
        act *= value
        grad_act *= value
        tl.store(p_grad_pre + o_pre + F, grad_value, mask=m_out)
    else:
        dot = tl.sum(tl.where(m_out, grad_act * act, 0.0), 1)
        grad_act *= weight[:, None]
    weighted_act = (act * weight[:, None]).to(out)
    grad_pre = (grad_act * slope(pre, ACTIVATION)).to(out)
    tl.store(p_weighted_act + o_act, weighted_act, mask=m_out)
    tl.store(p_grad_pre + o_pre, grad_pre, mask=m_out)
    return dot


@triton.jit(do_not_specialize=["S", "E", "K", "H", "F"])
def _down_backward_kernel(
    p_grad_y, p_pre, p_order, p_offsets, p_weights, p_w, p_bias, p_grad_pre, p_weighted_act, p_grad_weights,
    S, E, K, H, F,
    ROUTED: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, ALIGN: tl.constexpr, EVEN_H: tl.constexpr,
    EVEN_F: tl.constexpr, PRECISION: tl.constexpr, GROUP: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """grad_y's rows, gathered -> one tile of everything that needs the gradient of act, which is never stored."""
    H, F = aligned(H, ALIGN), aligned(F, ALIGN)
    columns = tl.cdiv(F, BLOCK_N)
    tile, column = place(tl.program_id(0), tl.num_programs(0) // columns, columns, GROUP)
    expert, first, stop = find_rows(p_offsets, tile, S, E, ROUTED, BLOCK_M, BLOCK_E)
    if expert > E:
        return
    o_row = first + tl.arange(0, BLOCK_M)
    o_plan, slot, token = find_slots(p_order, tl.minimum(o_row, stop - 1), expert, E, K, ROUTED)
    m_row = o_row < stop
    o_f = column * BLOCK_N + tl.arange(0, BLOCK_N)
    width = 2 * F if GATED else F
    p_grad_weights += slot * columns + column
    if expert == E:  # unassigned rows
        zeros = tl.zeros([BLOCK_M, BLOCK_N], p_pre.dtype.element_ty)
        m_out = m_row[:, None] & (o_f < F)[None, :]
        o_pre = o_plan[:, None] * width + o_f[None, :]
        tl.store(p_weighted_act + o_plan[:, None] * F + o_f[None, :], zeros, mask=m_out)
        tl.store(p_grad_pre + o_pre, zeros, mask=m_out)
        if GATED:
            tl.store(p_grad_pre + o_pre + F, zeros, mask=m_out)
        tl.store(p_grad_weights, tl.zeros([BLOCK_M], tl.float32), mask=m_row)
        return

    dot = tl.zeros([BLOCK_M], tl.float32)
    if p_bias is not None:  # noqa: SIM102 (the outer one is decided by the compiler)
        if column == 0:  # <dy, b> once, on rows that the loop below needs as well
            o_k = tl.arange(0, BLOCK_K)
            for k in range(0, H, BLOCK_K):
                m_k = o_k < H - k
                grad_y = tl.load(p_grad_y + token[:, None] * H + (o_k + k)[None, :], mask=m_k[None, :], other=0.0)
                bias = tl.load(p_bias + expert * H + k + o_k, mask=m_k, other=0.0)
                dot += tl.sum(grad_y.to(tl.float32) * bias.to(tl.float32)[None, :], 1)
    grad_act = multiply(
        p_grad_y, token, p_w + expert.to(tl.int64) * H * F, o_f, F, 1, F, H,
        BLOCK_M, BLOCK_N, BLOCK_K, EVEN_F, EVEN_H, PRECISION,
    )  # fmt: skip
    weight = tl.load(p_weights + slot)
    left, right = halves(grad_act, BLOCK_M, BLOCK_N)
    dot += _through_activation(
        left, p_pre, p_grad_pre, p_weighted_act, o_plan, m_row, weight, column * BLOCK_N, F, width,
        ACTIVATION, GATED, BLOCK_N // 2,
    )  # fmt: skip
    dot += _through_activation(
        right, p_pre, p_grad_pre, p_weighted_act, o_plan, m_row, weight, column * BLOCK_N + BLOCK_N // 2, F, width,
        ACTIVATION, GATED, BLOCK_N // 2,
    )  # fmt: skip
    tl.store(p_grad_weights, dot, mask=m_row)


def launch_down_backward(
    grad_y_TH: Tensor, pre: Tensor, plan: Plan | None, weights_TK: Tensor, experts: ExpertWeights, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the planned slots, or without a plan, of every token and expert."""
    weight_EHF, bias_EH = experts.down
    order_S, offsets_O = plan or (None, None)
    num_experts, hidden, width = weight_EHF.shape
    gated = activation in GATED
    num_slots = len(grad_y_TH) if order_S is None else len(order_S)
    precision = input_precision()
    groups = 1 if order_S is None else num_experts
    tile = heuristics.grouped_backward_tile(num_slots, groups, hidden, width, weight_EHF.dtype, precision, gated)
    if order_S is None:
        tiles = num_experts * heuristics.cdiv(num_slots, tile.m)
    else:
        tiles = heuristics.grouped_tiles(num_slots, num_experts, tile.m)
    columns = heuristics.cdiv(width, tile.n)
    grad_pre = pre.new_empty(pre.shape)
    weighted_act = pre.new_empty(*pre.shape[:-1], width)
    grad_weights_SP = weights_TK.new_empty(weights_TK.numel(), columns)
    launch(
        _down_backward_kernel, tiles * columns,
        grad_y_TH, pre, order_S, offsets_O, weights_TK, weight_EHF, bias_EH, grad_pre, weighted_act, grad_weights_SP,
        num_slots, num_experts, weights_TK.shape[1], hidden, width,
        tile=tile, ROUTED=order_S is not None, ACTIVATION=base(activation), GATED=gated,
        ALIGN=heuristics.alignment(hidden, width), EVEN_H=hidden % tile.k == 0, EVEN_F=width % tile.n == 0,
        PRECISION=precision, GROUP=heuristics.ROW_GROUP, BLOCK_E=heuristics.power_of_2(num_experts + 1),
        BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k,
    )  # fmt: skip
    return grad_pre, weighted_act, grad_weights_SP


def down_backward(
    grad_y_TH: Tensor, pre_SU: Tensor, plan: Plan, weights_TK: Tensor, experts: ExpertWeights, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    return launch_down_backward(grad_y_TH, pre_SU, plan, weights_TK, experts, activation)


@triton.jit(do_not_specialize=["S", "E", "H", "U"])
def _up_backward_kernel(
    p_grad_pre, p_order, p_offsets, p_w, p_grad_x, S, E, H, U,
    ALIGN: tl.constexpr, EVEN_H: tl.constexpr, EVEN_U: tl.constexpr, PRECISION: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """grad_pre's rows -> one tile of grad_x, scattered to the slots; see `reference.up_backward`."""
    H, U = aligned(H, ALIGN), aligned(U, ALIGN)
    columns = tl.cdiv(H, BLOCK_N)
    tile, column = place(tl.program_id(0), tl.num_programs(0) // columns, columns, GROUP)
    expert, first, stop = find_rows(p_offsets, tile, S, E, True, BLOCK_M, BLOCK_E)
    if expert > E:
        return
    o_row = first + tl.arange(0, BLOCK_M)
    o_plan, slot, _ = find_slots(p_order, tl.minimum(o_row, stop - 1), expert, E, 1, True)
    o_h = column * BLOCK_N + tl.arange(0, BLOCK_N)
    m_row = o_row < stop
    if expert == E:
        zeros = tl.zeros([BLOCK_M, BLOCK_N], p_grad_x.dtype.element_ty)
        store_rows(p_grad_x, slot, m_row, zeros, column * BLOCK_N, H, BLOCK_M, BLOCK_N)
        return
    acc = multiply(
        p_grad_pre, o_plan, p_w + expert.to(tl.int64) * U * H, o_h, H, 1, H, U,
        BLOCK_M, BLOCK_N, BLOCK_K, EVEN_H, EVEN_U, PRECISION,
    )  # fmt: skip
    store_rows(p_grad_x, slot, m_row, acc.to(p_grad_x.dtype.element_ty), column * BLOCK_N, H, BLOCK_M, BLOCK_N)


def up_backward(grad_pre_SU: Tensor, plan: Plan, experts: ExpertWeights) -> Tensor:
    (order_S, offsets_O), weight_EUH = plan, experts.up_weight_EUH
    num_experts, width, hidden = weight_EUH.shape
    grad_x_SH = grad_pre_SU.new_empty(len(order_S), hidden)
    precision = input_precision()
    tile = heuristics.grouped_tile(len(order_S), num_experts, hidden, weight_EUH.dtype, precision)
    tiles = heuristics.grouped_tiles(len(order_S), num_experts, tile.m)
    launch(
        _up_backward_kernel, tiles * heuristics.cdiv(hidden, tile.n),
        grad_pre_SU, order_S, offsets_O, weight_EUH, grad_x_SH, len(order_S), num_experts, hidden, width,
        tile=tile, ALIGN=heuristics.alignment(hidden, width), EVEN_H=hidden % tile.n == 0, EVEN_U=width % tile.k == 0,
        PRECISION=precision, GROUP=heuristics.ROW_GROUP, BLOCK_E=heuristics.power_of_2(num_experts + 1),
        BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k,
    )  # fmt: skip
    return grad_x_SH
