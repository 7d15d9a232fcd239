"""The end of a sum that was cut into parts, so that enough programs work on it: the parts added up, in their order."""

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
def _sum_parts_kernel(p_parts, p_a, p_b, p_c, p_d, PARTS, A, B, C, D, BLOCK: tl.constexpr):
    """Each number of a part to the tensor it belongs to."""
    size = A + B + C + D
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    p_parts += o
    for _ in range(0, PARTS):
        total += tl.load(p_parts, mask=o < size, other=0.0)
        p_parts += size
    _store_range(p_a, o, 0, A, total)
    if p_b is not None:
        _store_range(p_b, o, A, B, total)
    if p_c is not None:
        _store_range(p_c, o, A + B, C, total)
    if p_d is not None:
        _store_range(p_d, o, A + B + C, D, total)


def sum_parts(parts_PN: Tensor, outputs: Sequence[Tensor]) -> None:
    """Fills the outputs, four at most: a part holds the numbers of all of them, one tensor after another."""
    sizes, missing, tile = [output.numel() for output in outputs], 4 - len(outputs), heuristics.SUM_TILE
    launch(
        _sum_parts_kernel, heuristics.cdiv(parts_PN.shape[1], tile.m),
        parts_PN, *outputs, *[None] * missing, len(parts_PN), *sizes, *[0] * missing,
        tile=tile, BLOCK=tile.m,
    )  # fmt: skip
