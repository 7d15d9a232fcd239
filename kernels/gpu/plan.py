"""The order in which the experts run on the slots. Twin of `reference.plan`.

A counting sort without atomics. The slots come in tiles (those of `gate`, which has counted them already): a slot's
place is the start of its expert, plus what the tiles before this one hold of it, plus what this tile holds before it.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import heuristics
from kernels.gpu.heuristics import cdiv, power_of_2
from kernels.gpu.launch import launch
from kernels.routing import Plan


@triton.jit
def _expert_of(p_indices, o_s, mask, E):
    """The expert of slots; E for one that is not used, more for one that is not there."""
    index = tl.load(p_indices + o_s, mask=mask, other=0)
    index = tl.where((index < 0) | (index >= E), E, index)
    return tl.where(mask, index, E + 1)


@triton.jit(do_not_specialize=["S", "E", "SLOTS"])
def _count_kernel(p_indices, p_counts, S, E, SLOTS, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr):
    """Slots of each expert in one tile, in fp32 like the sums of `gate`: they are exact up to 2^24."""
    o_e = tl.arange(0, BLOCK_E)
    first = tl.program_id(0) * SLOTS
    stop = tl.minimum(first + SLOTS, S)
    total = tl.zeros([BLOCK_E], tl.int32)
    for s in range(first, stop, BLOCK_S):
        o_s = s + tl.arange(0, BLOCK_S)
        hit = _expert_of(p_indices, o_s, o_s < stop, E)[:, None] == o_e[None, :]
        total += tl.sum(hit.to(tl.int32), 0)
    tl.store(p_counts + tl.program_id(0) * E + o_e, total.to(tl.float32), mask=o_e < E)


@triton.jit(do_not_specialize=["B", "E", "L"])
def _scan_kernel(p_counts, p_before, B, E, L, BLOCK_B: tl.constexpr, BLOCK_E: tl.constexpr):
    """What the tiles before each tile hold of some experts; row B is the total."""
    o_e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    m_e = (o_e < E)[None, :]
    total = tl.zeros([BLOCK_E], tl.int32)
    for b in range(0, B, BLOCK_B):
        o_b = b + tl.arange(0, BLOCK_B)
        mask = (o_b < B)[:, None] & m_e
        counts = tl.load(p_counts + o_b[:, None] * L + o_e[None, :], mask=mask, other=0.0).to(tl.int32)
        before = total[None, :] + tl.cumsum(counts, 0) - counts
        tl.store(p_before + o_b[:, None] * E + o_e[None, :], before, mask=mask)
        total += tl.sum(counts, 0)
    tl.store(p_before + B * E + o_e, total, mask=o_e < E)


@triton.jit(do_not_specialize=["S", "E", "B", "L", "SLOTS"])
def _plan_kernel(
    p_indices, p_counts, p_before, p_order, p_offsets, S, E, B, L, SLOTS,
    BLOCK_B: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The places of one tile's slots. Few tiles are scanned here, by each program for itself."""
    tile = tl.program_id(0)
    o_e = tl.arange(0, BLOCK_E)
    if p_before is not None:
        before = tl.load(p_before + tile * E + o_e, mask=o_e < E, other=0)
        total = tl.load(p_before + B * E + o_e, mask=o_e < E, other=0)
    else:
        before = tl.zeros([BLOCK_E], tl.int32)
        total = tl.zeros([BLOCK_E], tl.int32)
        for b in range(0, B, BLOCK_B):
            o_b = b + tl.arange(0, BLOCK_B)
            mask = (o_b < B)[:, None] & (o_e < E)[None, :]
            counts = tl.load(p_counts + o_b[:, None] * L + o_e[None, :], mask=mask, other=0.0).to(tl.int32)
            before += tl.sum(tl.where((o_b < tile)[:, None], counts, 0), 0)
            total += tl.sum(counts, 0)
    first = tile * SLOTS
    stop = tl.minimum(first + SLOTS, S)
    start = tl.cumsum(total, 0) - total
    if tile == 0:
        tl.store(p_offsets + o_e, start, mask=o_e <= E)
    # Unused slots count as those of expert E: of all slots before this tile, the unassigned ones.
    before = tl.where(o_e == E, first - tl.sum(before, 0), before)
    place = start + before
    for s in range(first, stop, BLOCK_S):
        o_s = s + tl.arange(0, BLOCK_S)
        hit = _expert_of(p_indices, o_s, o_s < stop, E)[:, None] == o_e[None, :]
        rank = tl.cumsum(hit.to(tl.int32), 0) - 1
        position = tl.sum(tl.where(hit, place[None, :] + rank, 0), 1)
        tl.store(p_order + position, o_s, mask=o_s < stop)
        place += tl.sum(hit.to(tl.int32), 0)


def plan(indices_TK: Tensor, num_experts: int, partials_BL: Tensor | None = None) -> Plan:
    num_tokens, top_k = indices_TK.shape
    num_slots = num_tokens * top_k
    if num_slots == 0:
        return Plan(indices_TK.new_empty(0), indices_TK.new_zeros(num_experts + 1))
    order_S = indices_TK.new_empty(num_slots)
    offsets_O = indices_TK.new_empty(num_experts + 1)
    tile = heuristics.plan_tile(num_experts)
    counts = partials_BL
    if counts is None:
        part = heuristics.PLAN_TOKENS
        counts = indices_TK.new_empty(cdiv(num_tokens, part), num_experts, dtype=heuristics.COUNT_DTYPE)
        launch(
            _count_kernel, len(counts), indices_TK, counts, num_slots, num_experts, part * top_k,
            tile=tile, BLOCK_S=tile.m, BLOCK_E=tile.n,
        )  # fmt: skip
    num_tiles = len(counts)
    slots = power_of_2(cdiv(num_tokens, num_tiles)) * top_k  # a tile's size is a power of two: their number gives it
    before = None
    if num_tiles * num_experts > heuristics.PLAN_SCAN_LIMIT:
        before = indices_TK.new_empty(num_tiles + 1, num_experts)
        scan = heuristics.scan_tile(num_tiles)
        launch(
            _scan_kernel, cdiv(num_experts, scan.n), counts, before, num_tiles, num_experts, counts.shape[1],
            tile=scan, BLOCK_B=scan.m, BLOCK_E=scan.n,
        )  # fmt: skip
    launch(
        _plan_kernel, num_tiles,
        indices_TK, counts, before, order_S, offsets_O, num_slots, num_experts, num_tiles, counts.shape[1], slots,
        tile=tile, BLOCK_B=tile.k, BLOCK_S=tile.m, BLOCK_E=tile.n,
    )  # fmt: skip
    return Plan(order_S, offsets_O)
