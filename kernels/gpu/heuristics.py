"""Every tile size, warp count and pipeline depth, chosen from what the host has: T, K, E, H, F and the type.

Nothing is timed and nothing is tuned while running: a choice made by a clock would change the order of sums, and so
the bits. Each choice comes from a short list, so that `kernels.inspect` can compile all of them ahead of time.
"""

import math
from typing import NamedTuple

import torch

NUM_SMS = 132
"""Programs that a GPU runs at once (an H100 or H200; an A100 has 108). An estimate: it decides speed only."""


ALL_REGISTERS = 255


class Tile(NamedTuple):
    """What one program computes: m rows x n columns, k terms of the sum at a time."""

    m: int
    n: int
    k: int
    num_warps: int = 4
    num_stages: int = 1
    max_registers: int = 0
    """Of a thread; 0 leaves it to ptxas, which spills 8 bytes where that lets one more program in."""


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_2(n: int, low: int = 1) -> int:
    """The smallest power of two that is at least n and low."""
    return max(low, 1 << max(0, n - 1).bit_length())


def alignment(*sizes: int) -> int:
    """The power of two, up to 16, that divides all row lengths: it decides how wide a load can be.

    Triton itself looks for 16 only, but 312 = 8 * 39, and without 16-byte loads there is no asynchronous copy.
    """
    return math.gcd(16, *sizes)


# Grouped GEMMs. An H200 does 790 TFLOP/s (bf16) on 4.3 TB/s: a tile of m x n needs mn / (m + n) > 92 multiplications
# for each element that it loads from memory to keep the tensor cores busy, and L2 has most of the loads again. So
# 128 x 128, where there are rows enough. Two programs share a multiprocessor: while one is in its epilogue (bias, erf,
# store), the other multiplies. That is worth more here than 128 x 256 with one program, since the sums are short: 768
# terms are 12 steps of 64, and a prologue and an epilogue for every 12 steps would stand bare. It also does what a
# persistent kernel would do, at no cost in registers. 3 stages of (128 + 128) * 64 * 2 bytes are 96 KB: two programs
# fit into 227 KB, one into the 163 KB of an A100.


def grouped_tile(num_rows: int, num_groups: int, columns: int, dtype: torch.dtype, precision: str) -> Tile:
    """For `num_rows` rows spread over `num_groups` weights of `columns` outputs."""
    rows = cdiv(num_rows, num_groups)
    if dtype == torch.float32:
        return _fp32_tile(rows, precision)
    if rows <= 16:
        # Bound by the weights, each of which is read once: narrow tiles put more programs (more loads in flight) on
        # them, and 16 rows are the least that a tensor core takes.
        return Tile(16, 32, 128, num_warps=4, num_stages=4)
    if rows <= 32:
        return Tile(32, 64, 64, num_warps=4, num_stages=4)
    if rows <= 64 or cdiv(num_rows, 128) * cdiv(columns, 128) < NUM_SMS:
        return Tile(64, 128, 64, num_warps=4, num_stages=3)
    return Tile(128, 128, 64, num_warps=8, num_stages=3)


def _fp32_tile(rows: int, precision: str) -> Tile:
    """Without TF32, products run on the ordinary cores, whose operands sit in registers: small k, small tiles."""
    if precision == "tf32":
        return Tile(64, 64, 32, 4, 3, ALL_REGISTERS) if rows > 16 else Tile(16, 32, 64, 4, 3, ALL_REGISTERS)
    return Tile(64, 32, 32, 4, 3, ALL_REGISTERS) if rows > 16 else Tile(16, 32, 32, 4, 3, ALL_REGISTERS)


def halved(tile: Tile) -> Tile:
    """For a gated activation, whose tile has two accumulators."""
    return tile._replace(n=max(32, tile.n // 2))


ROW_GROUP = 8
"""Row tiles that are run through all columns together. 8 x 128 rows of 768 are 1.6 MB, and a wave of 264 programs
multiplies them with 33 x 128 x 768 of the weight, 6.5 MB: both stay in L2 (50 MB) until they are done with."""


def grouped_tiles(num_slots: int, num_experts: int, rows: int) -> int:
    """At least as many row tiles as there can be, over E experts and the unassigned slots."""
    return cdiv(num_slots, rows) + min(num_experts, num_slots - 1) if num_slots else 0


def grouped_backward_tile(
    num_rows: int, num_groups: int, inner: int, columns: int, dtype: torch.dtype, precision: str, gated: bool
) -> Tile:
    """Of `down_backward`: one accumulator also for a gated activation, but three more tiles live in the epilogue.
    Sizes that no tile divides need masks, which take registers too."""
    tile = grouped_tile(num_rows, num_groups, columns, dtype, precision)
    return halved(tile) if gated or inner % tile.k or columns % tile.n else tile


def weight_grad_tile(num_groups: int, rows: int, columns: int, dtype: torch.dtype, precision: str) -> Tile:
    """A sum over rows of x is long, and adding up parts of it would cost a second launch, so the tiles alone keep every
    multiprocessor busy, where they can: they shrink until there are enough of them."""
    if dtype == torch.float32:
        return Tile(64, 64, 32, 4, 3, ALL_REGISTERS)
    for tile in (Tile(128, 128, 64, 8, 3, ALL_REGISTERS), Tile(64, 128, 64, num_warps=4, num_stages=3)):
        if num_groups * cdiv(rows, tile.m) * cdiv(columns, tile.n) >= NUM_SMS:
            return tile
    return Tile(64, 64, 64, num_warps=4, num_stages=3)


WEIGHT_GRAD_SPAN = 1024
"""The fewest rows of a part. Part of a tile is written in fp32 and read again, which takes a multiprocessor's share of
the memory (32 GB/s) as long as its tensor cores (6 TFLOP/s) take for 700 rows, whatever the tile's size."""


def weight_grad_parts(programs: int, depth: int) -> int:
    """Into how many parts each sum over about `depth` rows is cut: into one, if that makes `programs` enough; else into
    a power of two of them, which leaves two programs for each multiprocessor, as long as parts are long."""
    if programs >= NUM_SMS:
        return 1
    most = max(1, depth // WEIGHT_GRAD_SPAN)
    return min(power_of_2(cdiv(2 * NUM_SMS, programs)), 1 << (most.bit_length() - 1))


def elementwise_tile(num_tokens: int, columns: int) -> Tile:
    """16 bytes a thread: as wide as a row goes."""
    n = min(256, power_of_2(columns, 16))
    return Tile(max(1, min(1024 // n, power_of_2(num_tokens))), n, 1, num_warps=4)


# Plan. A tile of slots and all experts make a matrix of hits, whose columns are summed up in registers: 4096 entries
# are 32 a thread.

PLAN_TOKENS = 64
"""Tokens in a tile, where `gate` has not counted them."""
COUNT_DTYPE = torch.float32
PLAN_SCAN_LIMIT = 16 * 1024
"""Counts that each program adds up for itself. 16,384 are 64 KB from L2, about a microsecond: less than a launch."""


def plan_tile(num_experts: int) -> Tile:
    n = power_of_2(num_experts + 1, 4)
    m = max(16, min(128, 4096 // n))
    return Tile(m, n, m, num_warps=4)


def scan_tile(num_tiles: int) -> Tile:
    """8 experts a program: a row of counts is then one 32-byte sector."""
    return Tile(min(512, power_of_2(num_tiles)), 8, 1, num_warps=4)


# Gate. x is read once, which costs T * H bytes whatever the shape of the tile; the logits of a tile stay in
# registers, where the choice is made. fp32 products (a router in fp32 that meets x in fp32, or x in 16 bits) run on the
# ordinary cores with small sums at a time; 16-bit weights and x on the tensor cores, whose products of 16-bit numbers
# are exact in fp32.


def gate_tile(num_tokens: int, block_e: int, mlp: bool, tensor_cores: bool) -> Tile:
    """m tokens, n columns of an mlp's hidden layer, k terms of the sum."""
    if num_tokens <= 1024:
        # Few tokens: more programs than 16 tokens each allow. An mlp's program reads all its weights from L2
        # (about 60 GB/s each), so T=64 costs what T=1 does.
        return Tile(16 if tensor_cores else 4, 32, 128 if tensor_cores else 32, 4, 3, ALL_REGISTERS)
    # 64 rows would be wgmma's; the logits of 32 leave room for many programs, and memory is the bound. (With 64,
    # Triton 3.7 fails to compile the reduction over a tcgen05 accumulator for sm_100.)
    m = 16 if block_e >= (32 if mlp else 64) or (mlp and not tensor_cores) else 32
    n = 64 if block_e <= 32 and tensor_cores else 32
    if tensor_cores:
        return Tile(m, n, 128 if m == 16 else 64, 4, 3, ALL_REGISTERS)
    return Tile(m, n, 32, 4, 3, ALL_REGISTERS)


def choose_tile(num_tokens: int, block_e: int) -> Tile:
    return Tile(min(power_of_2(num_tokens), max(1, 1024 // block_e)), block_e, 1, num_warps=4)


def choose_backward_tile(num_tokens: int, block_e: int, block_p: int) -> Tile:
    return Tile(min(power_of_2(num_tokens), max(1, 512 // max(block_e, block_p))), block_e, block_p, num_warps=4)


def hidden_backward_tile(block_e: int, tensor_cores: bool) -> Tile:
    """m tokens, n columns of the hidden layer: half as many where ordinary products keep operands in registers too."""
    return Tile(16, 64 if block_e <= 16 and tensor_cores else 32, 64 if tensor_cores else 32, 4, 3, ALL_REGISTERS)


def grad_x_tile(num_tokens: int) -> Tile:
    """Bound by memory for a linear router (its sum is over experts), by fp32 products for an mlp's hidden layer."""
    return Tile(min(32, power_of_2(num_tokens, 16)), 64, 16, 4, 2, ALL_REGISTERS)


def router_grad_tile(num_experts: int) -> Tile:
    """m rows (experts, or hidden units) x n columns, k tokens at a time."""
    return Tile(min(32, power_of_2(num_experts, 16)), 64, 16, 4, 2, ALL_REGISTERS)


def router_grad_span(num_tokens: int, tiles: int, step: int) -> int:
    """Tokens a program adds up: as many as leave two programs for each multiprocessor, and a power of two."""
    parts = max(1, 2 * NUM_SMS // tiles)
    return power_of_2(cdiv(num_tokens, parts), 8 * step)


def sum_tile(num_parts: int) -> Tile:
    """m numbers, k parts of them at a time. Many parts have few numbers each: one part after another, a few programs
    would wait for memory as many times as there are parts, half a microsecond each."""
    return Tile(32, 1, 32, num_warps=4) if num_parts > 16 else Tile(256, 1, 1, num_warps=4)


# Attention. The inner products are as short as a head (26 to 128), so a tile of queries keeps its accumulator and the
# exp2 of a tile of scores in registers; keys and values stream through two or three stages.


def attention_tile(max_len: int, block_d: int, dtype: torch.dtype, precision: str) -> Tile:
    """m queries x n keys at a time."""
    if dtype == torch.float32:
        return _fp32_attention_tile(block_d)
    if max_len > 64 and block_d <= 64:
        return Tile(128, 64, block_d, 8, 3, ALL_REGISTERS)
    return Tile(64, 64 if block_d <= 128 else 32, block_d, 8, 2, ALL_REGISTERS)


def _fp32_attention_tile(block_d: int) -> Tile:
    if block_d <= 64:
        return Tile(16, 32, block_d, 4, 1, ALL_REGISTERS)
    return Tile(16, 16, block_d, 8, 1, ALL_REGISTERS)


def attention_backward_tile(max_len: int, block_d: int, dtype: torch.dtype, precision: str) -> Tile:
    """m rows that a program owns x n rows of the other side at a time. grad_k and grad_v are two accumulators.

    32 rows are too few for wgmma, which is as well: with 32 columns and 4 warps some versions of ptxas let it read out
    of bounds.
    """
    if dtype == torch.float32:
        return _fp32_attention_tile(block_d)
    if block_d <= 128:
        return Tile(32, 32, block_d, 4, 2, ALL_REGISTERS)
    return Tile(16, 32, block_d, 4, 1, ALL_REGISTERS)


def attention_fits(size: int, dtype: torch.dtype) -> bool:
    """Whether the kernels have registers for a head of this size; no encoder's is over 128."""
    return size <= (128 if dtype == torch.float32 else 256)


# LayerNorm(x + dropout(y)). Bound by memory: a row is read once and stays in registers. The backward has six tiles of 8
# numbers a thread; with 16 of them, no more than three programs share a multiprocessor, to load while one waits for the
# sums of its rows.


def norm_tile(hidden: int) -> Tile:
    """m whole rows, which a block of n columns holds."""
    n = power_of_2(hidden, 16)
    return Tile(max(1, 1024 // n), n, 1, max(4, n // 256), 1, ALL_REGISTERS)


def norm_span(num_rows: int, step: int) -> int:
    """Rows that a program of the backward goes through, `step` at a time: as many as leave four programs for each
    multiprocessor, but at least four steps: it writes two numbers for each column, which are read again."""
    return step * max(4, cdiv(cdiv(num_rows, 4 * NUM_SMS), step))


def norm_fits(hidden: int) -> bool:
    """Whether the kernels have registers for rows of this size: those of all BERTs, and of larger models."""
    return hidden <= 4096


def stacked_tile(num_tokens: int, columns: int, dtype: torch.dtype, precision: str) -> Tile:
    """Of the product that also sums over the experts."""
    if dtype == torch.float32 and precision != "tf32":
        return Tile(32, 64, 32, 4, 2, ALL_REGISTERS)
    return grouped_tile(num_tokens, 1, columns, dtype, precision)
