"""The end of a sum that was cut into parts, so that enough programs work on it: the parts added up, in an order that
depends on how many there are, and on nothing else."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import heuristics
from kernels.gpu.launch import launch


@triton.jit
def _store_range(p_out, o, first, size, value):
    """To a tensor what is its own of the concatenation of several."""
    tl.store(p_out + (o - first), value, mask=(o >= first) & (o < first + size))


@triton.jit(do_not_specialize=["PARTS", "A", "B", "C", "D"])
def _sum_parts_kernel(
    p_parts, p_a, p_b, p_c, p_d, PARTS, A, B, C, D, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr
):  # fmt: skip
    """Each number of a part to the tensor it belongs to."""
    size = (A + B + C + D).to(tl.int64)
    o = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_p = tl.arange(0, BLOCK_P)
    total = tl.zeros([BLOCK_N], tl.float32)
    p_parts += o_p[:, None] * size + o[None, :]
    for part in range(0, PARTS, BLOCK_P):
        mask = (o_p < PARTS - part)[:, None] & (o < size)[None, :]
        total += tl.sum(tl.load(p_parts, mask=mask, other=0.0), 0)
        p_parts += BLOCK_P * size
    _store_range(p_a, o, 0, A, total)
    if p_b is not None:
        _store_range(p_b, o, A, B, total)
    if p_c is not None:
        _store_range(p_c, o, A + B, C, total)
    if p_d is not None:
        _store_range(p_d, o, A + B + C, D, total)


def sum_parts(parts_PN: Tensor, outputs: Sequence[Tensor]) -> None:
    """Fills the outputs, four at most: a part holds the numbers of all of them, one tensor after another."""
    sizes, missing, tile = [output.numel() for output in outputs], 4 - len(outputs), heuristics.sum_tile(len(parts_PN))
    launch(
        _sum_parts_kernel, heuristics.cdiv(parts_PN.shape[1], tile.m),
        parts_PN, *outputs, *[None] * missing, len(parts_PN), *sizes, *[0] * missing,
        tile=tile, BLOCK_N=tile.m, BLOCK_P=tile.k,
    )  # fmt: skip
