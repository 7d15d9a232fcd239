"""A kernel that cannot fit into registers: each thread holds a product of 256 x 256 numbers, 512 of them."""

import triton
import triton.language as tl


@triton.jit
def _spilling_kernel(p_a, p_out):
    o = tl.arange(0, 256)
    at = o[:, None] * 256 + o[None, :]
    first, second = tl.load(p_a + at), tl.load(p_a + 65536 + at)
    acc = tl.dot(first, second)
    tl.store(p_out + at, tl.exp(acc) * tl.trans(acc) + tl.cumsum(acc, 1))
