"""What the GEMM kernels share: which rows a program has, in which order programs run, and the loop over the sum.

In kernels: `p_` pointers, `o_` offsets (indices), `m_` masks; constants in capitals.
"""

import triton
import triton.language as tl


@triton.jit
def aligned(size, ALIGN: tl.constexpr):
    """The same number, so written that the compiler can find what divides it."""
    return size // ALIGN * ALIGN


@triton.jit
def place(pid, tiles, columns, GROUP: tl.constexpr):
    """Program -> (row tile, column): GROUP row tiles take a column, then the next one, so that L2 keeps both."""
    first = pid // (GROUP * columns) * GROUP
    size = tl.minimum(tiles - first, GROUP)
    within = pid % (GROUP * columns)
    return first + within % size, within // size


@triton.jit
def find_rows(p_offsets, tile, S, E, ROUTED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr):
    """Row tile -> expert, its first row, and the end of the expert's rows.

    There is no table of tiles: the E + 1 offsets say which one this is, whatever BLOCK_M. Expert E has the
    unassigned rows, and more than E means that there is no such tile: the grid is the host's bound, `grouped_tiles`.
    Without routing, each expert runs on S tokens.
    """
    if ROUTED:
        o_e = tl.arange(0, BLOCK_E)
        start = tl.load(p_offsets + o_e, mask=o_e <= E, other=0)
        stop = tl.load(p_offsets + o_e + 1, mask=o_e < E, other=0)
        stop = tl.where(o_e == E, S, stop)
        tiles = tl.where(o_e <= E, (stop - start + BLOCK_M - 1) // BLOCK_M, 0)
        last = tl.cumsum(tiles, 0)
        expert = tl.sum((last <= tile).to(tl.int32), 0)
        own = o_e == expert
        first = tl.sum(tl.where(own, start, 0), 0) + (tile - tl.sum(tl.where(own, last - tiles, 0), 0)) * BLOCK_M
        end = tl.sum(tl.where(own, stop, 0), 0)
    else:
        tiles = tl.cdiv(S, BLOCK_M)
        expert = tile // tiles
        first = tile % tiles * BLOCK_M
        end = S
    return expert, first, end


@triton.jit
def find_slots(p_order, o_row, expert, E, K, ROUTED: tl.constexpr):
    """Rows of an expert -> their place in plan order, slot and token (int64). Without routing the first two agree."""
    if ROUTED:
        plan = o_row.to(tl.int64)
        slot = tl.load(p_order + o_row)
        token = (slot // K).to(tl.int64)  # divided in 32 bits: a division of 64 is a call of hundreds of instructions
        slot = slot.to(tl.int64)
    else:
        token = o_row.to(tl.int64)
        slot = token * E + expert
        plan = slot
    return plan, slot, token


@triton.jit
def multiply(
    p_a, o_a, p_b, o_n, stride_k, stride_n, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_N: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows o_a of A [.., K] times columns o_n of B, which lies at p_b + k * stride_k + n * stride_n."""
    o_k = tl.arange(0, BLOCK_K)
    p_a += o_a[:, None] * K + o_k[None, :]
    p_b += o_k[:, None] * stride_k + o_n[None, :] * stride_n
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, K, BLOCK_K):
        if EVEN_K:
            a = tl.load(p_a)
        else:
            a = tl.load(p_a, mask=(o_k < K - k)[None, :], other=0.0)
        if EVEN_K and EVEN_N:
            b = tl.load(p_b)
        elif EVEN_K:
            b = tl.load(p_b, mask=(o_n < N)[None, :], other=0.0)
        elif EVEN_N:
            b = tl.load(p_b, mask=(o_k < K - k)[:, None], other=0.0)
        else:
            b = tl.load(p_b, mask=(o_k < K - k)[:, None] & (o_n < N)[None, :], other=0.0)
        acc = tl.dot(a.to(b.dtype), b, acc, input_precision=PRECISION)
        p_a += BLOCK_K
        p_b += BLOCK_K * stride_k
    return acc


@triton.jit
def halves(tile, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """A tile's left and right columns. An epilogue that takes them one after the other needs half the registers."""
    return tl.split(tl.permute(tl.reshape(tile, [BLOCK_M, 2, BLOCK_N // 2]), [0, 2, 1]))


@triton.jit
def store_rows(p_out, o_row, m_row, tile, first, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """A tile to rows o_row and columns first.. of [.., N], by halves."""
    o_n = first + tl.arange(0, BLOCK_N // 2)
    left, right = halves(tile, BLOCK_M, BLOCK_N)
    tl.store(p_out + o_row[:, None] * N + o_n[None, :], left, mask=m_row[:, None] & (o_n < N)[None, :])
    o_n += BLOCK_N // 2
    tl.store(p_out + o_row[:, None] * N + o_n[None, :], right, mask=m_row[:, None] & (o_n < N)[None, :])
