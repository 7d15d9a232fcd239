"""The forward of the experts: an expert's weight times the rows that chose it. Twins of `reference.up` and `.down`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.activations import GATED
from kernels.gpu import heuristics
from kernels.gpu.activations import base, function
from kernels.gpu.launch import input_precision, launch
from kernels.gpu.tiles import aligned, find_rows, find_slots, halves, multiply, place, store_rows
from kernels.records import ExpertWeights
from kernels.routing import Plan


@triton.jit
def _activate(
    pre, value, p_act, p_pre, o_row, m_row, weight, first_f, F, width,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Stores pre and act of some columns."""
    o_f = first_f + tl.arange(0, COLUMNS)
    m_out = m_row[:, None] & (o_f < F)[None, :]
    act = function(pre, ACTIVATION)
    if GATED:
        act *= value
    tl.store(p_act + o_row[:, None] * F + o_f[None, :], act * weight[:, None], mask=m_out)
    if p_pre is not None:
        p_pre += o_row[:, None] * width + o_f[None, :]
        tl.store(p_pre, pre, mask=m_out)
        if GATED:
            tl.store(p_pre + F, value, mask=m_out)


@triton.jit(do_not_specialize=["S", "E", "K", "H", "F"])
def _up_kernel(
    p_x, p_order, p_offsets, p_weights, p_w, p_bias, p_act, p_pre, S, E, K, H, F,
    ROUTED: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, ALIGN: tl.constexpr, EVEN_H: tl.constexpr,
    EVEN_F: tl.constexpr, PRECISION: tl.constexpr, GROUP: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """x's rows, gathered as they are loaded -> pre and act of one tile; see `reference.up` and `reference.all_up`."""
    H, F = aligned(H, ALIGN), aligned(F, ALIGN)
    columns = tl.cdiv(F, BLOCK_N)
    tile, column = place(tl.program_id(0), tl.num_programs(0) // columns, columns, GROUP)
    expert, first, stop = find_rows(p_offsets, tile, S, E, ROUTED, BLOCK_M, BLOCK_E)
    if expert > E:
        return
    o_row = first + tl.arange(0, BLOCK_M)
    o_plan, slot, token = find_slots(p_order, tl.minimum(o_row, stop - 1), expert, E, K, ROUTED)
    o_f = column * BLOCK_N + tl.arange(0, BLOCK_N)
    m_f = o_f < F
    width = 2 * F if GATED else F
    if expert == E:  # unassigned rows
        zeros = tl.zeros([BLOCK_M, BLOCK_N], p_act.dtype.element_ty)
        m_out = (o_row < stop)[:, None] & m_f[None, :]
        o_pre = o_plan[:, None] * width + o_f[None, :]
        tl.store(p_act + o_plan[:, None] * F + o_f[None, :], zeros, mask=m_out)
        if p_pre is not None:
            tl.store(p_pre + o_pre, zeros, mask=m_out)
            if GATED:
                tl.store(p_pre + o_pre + F, zeros, mask=m_out)
        return

    o_k = tl.arange(0, BLOCK_K)
    a_ptrs = p_x + token[:, None] * H + o_k[None, :]
    b_ptrs = p_w + expert.to(tl.int64) * width * H + o_f[None, :] * H + o_k[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    value = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, H, BLOCK_K):
        m_k = o_k < H - k
        if EVEN_H:
            a = tl.load(a_ptrs)
        else:
            a = tl.load(a_ptrs, mask=m_k[None, :], other=0.0)
        if EVEN_H and EVEN_F:
            b = tl.load(b_ptrs)
        else:
            b = tl.load(b_ptrs, mask=m_k[:, None] & m_f[None, :], other=0.0)
        a = a.to(b.dtype)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        if GATED:  # the value half of the rows, in an accumulator of its own
            if EVEN_H and EVEN_F:
                b = tl.load(b_ptrs + F * H)
            else:
                b = tl.load(b_ptrs + F * H, mask=m_k[:, None] & m_f[None, :], other=0.0)
            value = tl.dot(a, b, value, input_precision=PRECISION)
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K

    if p_bias is not None:
        p_bias += expert * width + o_f
        acc += tl.load(p_bias, mask=m_f, other=0.0).to(tl.float32)[None, :]
        if GATED:
            value += tl.load(p_bias + F, mask=m_f, other=0.0).to(tl.float32)[None, :]
    weight = tl.full([BLOCK_M], 1.0, tl.float32)
    if p_weights is not None:
        weight = tl.load(p_weights + slot)
    left, right = halves(acc, BLOCK_M, BLOCK_N)
    value_left, value_right = halves(value, BLOCK_M, BLOCK_N)
    m_row = o_row < stop
    _activate(
        left, value_left, p_act, p_pre, o_plan, m_row, weight, column * BLOCK_N, F, width,
        ACTIVATION, GATED, BLOCK_N // 2,
    )  # fmt: skip
    _activate(
        right, value_right, p_act, p_pre, o_plan, m_row, weight, column * BLOCK_N + BLOCK_N // 2, F, width,
        ACTIVATION, GATED, BLOCK_N // 2,
    )  # fmt: skip


def launch_up(
    x_TH: Tensor,
    plan: Plan | None,
    weights_S: Tensor | None,
    experts: ExpertWeights,
    act: Tensor,
    pre: Tensor | None,
    top_k: int,
    activation: str,
) -> None:
    """Fills act and pre: of the planned slots, or without a plan, of every token and expert."""
    weight_EUH, bias_EU = experts.up
    order_S, offsets_O = plan or (None, None)
    num_experts, _, hidden = weight_EUH.shape
    width, gated = act.shape[-1], activation in GATED
    num_slots = len(x_TH) if order_S is None else len(order_S)
    precision = input_precision()
    groups = 1 if order_S is None else num_experts
    tile = heuristics.grouped_tile(num_slots, groups, width, weight_EUH.dtype, precision)
    if gated:
        tile = heuristics.halved(tile)
    if order_S is None:
        tiles = num_experts * heuristics.cdiv(num_slots, tile.m)
    else:
        tiles = heuristics.grouped_tiles(num_slots, num_experts, tile.m)
    launch(
        _up_kernel, tiles * heuristics.cdiv(width, tile.n),
        x_TH, order_S, offsets_O, weights_S, weight_EUH, bias_EU, act, pre,
        num_slots, num_experts, top_k, hidden, width,
        tile=tile, ROUTED=order_S is not None, ACTIVATION=base(activation), GATED=gated,
        ALIGN=heuristics.alignment(hidden, width), EVEN_H=hidden % tile.k == 0, EVEN_F=width % tile.n == 0,
        PRECISION=precision, GROUP=heuristics.ROW_GROUP, BLOCK_E=heuristics.power_of_2(num_experts + 1),
        BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k,
    )  # fmt: skip


def up(
    x_TH: Tensor, plan: Plan, experts: ExpertWeights, top_k: int, activation: str, keep_pre: bool
) -> tuple[Tensor, Tensor | None]:
    weight_EUH = experts.up_weight_EUH
    num_slots, width = len(plan.order_S), weight_EUH.shape[1]
    act_SF = weight_EUH.new_empty(num_slots, width // 2 if activation in GATED else width)
    pre_SU = weight_EUH.new_empty(num_slots, width) if keep_pre else None
    launch_up(x_TH, plan, None, experts, act_SF, pre_SU, top_k, activation)
    return act_SF, pre_SU


@triton.jit(do_not_specialize=["S", "E", "H", "F"])
def _down_kernel(
    p_act, p_order, p_offsets, p_weights, p_w, p_bias, p_residual, p_rows, S, E, H, F,
    ALIGN: tl.constexpr, EVEN_H: tl.constexpr, EVEN_F: tl.constexpr, PRECISION: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """act's rows -> one tile of weighted rows, scattered to their slots; see `reference.down`."""
    H, F = aligned(H, ALIGN), aligned(F, ALIGN)
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
        zeros = tl.zeros([BLOCK_M, BLOCK_N], p_rows.dtype.element_ty)
        store_rows(p_rows, slot, m_row, zeros, column * BLOCK_N, H, BLOCK_M, BLOCK_N)
        return

    acc = multiply(
        p_act, o_plan, p_w + expert.to(tl.int64) * H * F, o_h, 1, F, H, F,
        BLOCK_M, BLOCK_N, BLOCK_K, EVEN_H, EVEN_F, PRECISION,
    )  # fmt: skip
    m_h = o_h < H
    if p_bias is not None:
        acc += tl.load(p_bias + expert * H + o_h, mask=m_h, other=0.0).to(tl.float32)[None, :]
    acc *= tl.load(p_weights + slot)[:, None]
    if p_residual is not None:
        m_out = m_row[:, None] & m_h[None, :]
        acc += tl.load(p_residual + slot[:, None] * H + o_h[None, :], mask=m_out, other=0.0).to(tl.float32)
    store_rows(p_rows, slot, m_row, acc.to(p_rows.dtype.element_ty), column * BLOCK_N, H, BLOCK_M, BLOCK_N)


def down(
    act_SF: Tensor,
    plan: Plan,
    weights_TK: Tensor,
    experts: ExpertWeights,
    residual_TH: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    order_S, offsets_O = plan
    weight_EHF, bias_EH = experts.down
    num_experts, hidden, width = weight_EHF.shape
    rows_SH = act_SF.new_empty(len(order_S), hidden, dtype=dtype)
    precision = input_precision()
    tile = heuristics.grouped_tile(len(order_S), num_experts, hidden, weight_EHF.dtype, precision)
    tiles = heuristics.grouped_tiles(len(order_S), num_experts, tile.m)
    launch(
        _down_kernel, tiles * heuristics.cdiv(hidden, tile.n),
        act_SF, order_S, offsets_O, weights_TK, weight_EHF, bias_EH, residual_TH, rows_SH,
        len(order_S), num_experts, hidden, width,
        tile=tile, ALIGN=heuristics.alignment(hidden, width), EVEN_H=hidden % tile.n == 0, EVEN_F=width % tile.k == 0,
        PRECISION=precision, GROUP=heuristics.ROW_GROUP, BLOCK_E=heuristics.power_of_2(num_experts + 1),
        BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k,
    )  # fmt: skip
    return rows_SH
