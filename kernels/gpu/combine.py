"""The sum of a token's rows. Twin of `reference.combine`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import heuristics
from kernels.gpu.launch import launch
from kernels.gpu.tiles import aligned


@triton.jit
def sum_rows(p_rows, o_t, o_h, mask, K, H):
    """Rows t * K .. t * K + K - 1 of [.., H], in that order, in fp32."""
    p_rows += (o_t.to(tl.int64) * K)[:, None] * H + o_h[None, :]
    total = tl.load(p_rows, mask=mask, other=0.0).to(tl.float32)
    for k in range(1, K):
        total += tl.load(p_rows + k * H, mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit
def live_rows(p_residual, p_mask, o_t, o_h, mask, T, H):
    """Rows of the tokens that are not masked, in fp32; the others can hold NaN and are not read."""
    if p_mask is not None:
        mask = mask & (tl.load(p_mask + o_t, mask=o_t < T, other=0) != 0)[:, None]
    return tl.load(p_residual + o_t.to(tl.int64)[:, None] * H + o_h[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["T", "K", "H"])
def _combine_kernel(
    p_rows, p_residual, p_mask, p_y, T, K, H, ALIGN: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr
):
    """One tile of y; see `reference.combine`."""
    H = aligned(H, ALIGN)
    columns = tl.cdiv(H, BLOCK_H)
    o_t = tl.program_id(0) // columns * BLOCK_T + tl.arange(0, BLOCK_T)
    o_h = tl.program_id(0) % columns * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = (o_t < T)[:, None] & (o_h < H)[None, :]
    y = sum_rows(p_rows, o_t, o_h, mask, K, H)
    if p_residual is not None:
        y += live_rows(p_residual, p_mask, o_t, o_h, mask, T, H)
    tl.store(p_y + o_t.to(tl.int64)[:, None] * H + o_h[None, :], y, mask=mask)


def combine(
    rows_SH: Tensor, top_k: int, residual_TH: Tensor | None, mask_T: Tensor | None, dtype: torch.dtype
) -> Tensor:
    num_tokens, hidden = len(rows_SH) // top_k, rows_SH.shape[1]
    y_TH = rows_SH.new_empty(num_tokens, hidden, dtype=dtype)
    tile = heuristics.elementwise_tile(num_tokens, hidden)
    launch(
        _combine_kernel, heuristics.cdiv(num_tokens, tile.m) * heuristics.cdiv(hidden, tile.n),
        rows_SH, residual_TH, mask_T, y_TH, num_tokens, top_k, hidden,
        tile=tile, ALIGN=heuristics.alignment(hidden), BLOCK_T=tile.m, BLOCK_H=tile.n,
    )  # fmt: skip
    return y_TH
