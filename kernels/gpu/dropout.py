"""Dropout as a function of a seed and of an element's place, as `kernels/dropout.py` has it: the same numbers."""

import triton
import triton.language as tl


@triton.jit
def _mix(h):
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    return h ^ (h >> 16)


@triton.jit
def kept(seed, o_row, o_column, threshold, scale):
    """What each element is multiplied by: 0 or `scale`. The hash of `dropout.dropout_hash`, in uint32."""
    h = _mix((o_row ^ seed).to(tl.uint32))
    h = _mix(h + o_column.to(tl.uint32) * 0x9E3779B9)
    return tl.where(h.to(tl.int64) >= threshold, scale, 0.0)


def dropout_arguments(rate: float) -> tuple[int, float]:
    """The least hash that is kept, and what is kept is multiplied by."""
    return int(rate * 2**32), 1 / (1 - rate)
