"""LayerNorm(x + dropout(y)) as one pass each way. Twins of `reference.plain_residual_norm` and its backward.

Nothing is kept of a row but its mean and scale: the backward computes the sum and the dropout's mask again, in the same
types and from the same seed. x, y and the result may each have a type of their own; all sums are in fp32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import reference
from kernels.dropout import Dropout
from kernels.gpu import heuristics
from kernels.gpu.dropout import dropout_arguments, kept
from kernels.gpu.heuristics import cdiv
from kernels.gpu.launch import launch
from kernels.gpu.parts import sum_parts
from kernels.gpu.tiles import aligned


@triton.jit
def _residual_sum(p_x, p_y, p_seed, o_t, o_h, mask, H, threshold, kept_scale):
    """Rows of x + dropout(y) in fp32, 0 outside of the mask, and what y was multiplied by."""
    o = o_t.to(tl.int64)[:, None] * H + o_h[None, :]
    x = tl.load(p_x + o, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(p_y + o, mask=mask, other=0.0).to(tl.float32)
    if p_seed is None:
        factor = tl.full([1, 1], 1.0, tl.float32)
    else:
        factor = kept(tl.load(p_seed), o_t[:, None], o_h[None, :], threshold, kept_scale)
    return x + y * factor, factor


@triton.jit(do_not_specialize=["T", "H", "threshold"])
def _residual_norm_kernel(
    p_x, p_y, p_w, p_b, p_seed, p_out, p_stats, T, H, threshold: tl.int64, kept_scale, eps,
    ALIGN: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Whole rows: they stay in registers from the first sum to the result."""
    H = aligned(H, ALIGN)
    o_t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    o_h = tl.arange(0, BLOCK_H)
    m_t = o_t < T
    m_h = o_h < H
    mask = m_t[:, None] & m_h[None, :]
    total, _ = _residual_sum(p_x, p_y, p_seed, o_t, o_h, mask, H, threshold, kept_scale)
    mean = tl.sum(total, 1) / H
    centred = tl.where(m_h[None, :], total - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / H + eps)
    w = tl.load(p_w + o_h, mask=m_h, other=0.0).to(tl.float32)
    b = tl.load(p_b + o_h, mask=m_h, other=0.0).to(tl.float32)
    out = centred * scale[:, None] * w[None, :] + b[None, :]
    o_t = o_t.to(tl.int64)
    tl.store(p_out + o_t[:, None] * H + o_h[None, :], out, mask=mask)
    tl.store(p_stats + 2 * o_t, mean, mask=m_t)
    tl.store(p_stats + 2 * o_t + 1, scale, mask=m_t)


@triton.jit(do_not_specialize=["T", "H", "SPAN", "threshold"])
def _residual_norm_backward_kernel(
    p_grad, p_x, p_y, p_w, p_stats, p_seed, p_grad_x, p_grad_y, p_parts, T, H, SPAN, threshold: tl.int64, kept_scale,
    ALIGN: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """SPAN rows, a few at a time, and their part of the gradients of weight [H] and, behind it, of bias [H].

    With n the normalised row and g = grad * weight: grad_sum = scale * (g - mean(g) - n * mean(g * n)).
    """
    H = aligned(H, ALIGN)
    part = tl.program_id(0)
    stop = tl.minimum((part + 1) * SPAN, T)
    o_h = tl.arange(0, BLOCK_H)
    m_h = o_h < H
    w = tl.load(p_w + o_h, mask=m_h, other=0.0).to(tl.float32)
    grad_w = tl.zeros([BLOCK_T, BLOCK_H], tl.float32)
    grad_b = tl.zeros([BLOCK_T, BLOCK_H], tl.float32)
    for t in range(part * SPAN, stop, BLOCK_T):
        o_t = t + tl.arange(0, BLOCK_T)
        m_t = o_t < stop
        mask = m_t[:, None] & m_h[None, :]
        total, factor = _residual_sum(p_x, p_y, p_seed, o_t, o_h, mask, H, threshold, kept_scale)
        o_t = o_t.to(tl.int64)
        o = o_t[:, None] * H + o_h[None, :]
        grad = tl.load(p_grad + o, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(p_stats + 2 * o_t, mask=m_t, other=0.0)
        scale = tl.load(p_stats + 2 * o_t + 1, mask=m_t, other=0.0)
        normal = (total - mean[:, None]) * scale[:, None]
        grad_w += grad * normal
        grad_b += grad
        grad *= w[None, :]
        flat = tl.sum(grad, 1) / H
        along = tl.sum(grad * normal, 1) / H
        grad_sum = (grad - flat[:, None] - normal * along[:, None]) * scale[:, None]
        tl.store(p_grad_x + o, grad_sum, mask=mask)
        tl.store(p_grad_y + o, grad_sum * factor, mask=mask)
    p_parts += part.to(tl.int64) * 2 * H + o_h
    tl.store(p_parts, tl.sum(grad_w, 0), mask=m_h)
    tl.store(p_parts + H, tl.sum(grad_b, 0), mask=m_h)


def _seed(dropout: Dropout) -> Tensor | None:
    return dropout.seed if dropout.rate > 0.0 else None


def residual_norm(
    x: Tensor, y: Tensor, weight_H: Tensor, bias_H: Tensor, eps: float, dropout: Dropout
) -> tuple[Tensor, Tensor]:
    hidden = x.shape[-1]
    if not heuristics.norm_fits(hidden):
        return reference.plain_residual_norm(x, y, weight_H, bias_H, eps, dropout)
    num_rows, tile = x.numel() // hidden, heuristics.norm_tile(hidden)
    out = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, y.dtype))
    stats = x.new_empty(*x.shape[:-1], 2, dtype=torch.float32)
    launch(
        _residual_norm_kernel, cdiv(num_rows, tile.m),
        x, y, weight_H, bias_H, _seed(dropout), out, stats,
        num_rows, hidden, *dropout_arguments(dropout.rate), eps,
        tile=tile, ALIGN=heuristics.alignment(hidden), BLOCK_T=tile.m, BLOCK_H=tile.n,
    )  # fmt: skip
    return out, stats


def residual_norm_backward(
    grad: Tensor, x: Tensor, y: Tensor, weight_H: Tensor, bias_H: Tensor, stats: Tensor, dropout: Dropout
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden = x.shape[-1]
    if not heuristics.norm_fits(hidden):
        return reference.plain_residual_norm_backward(grad, x, y, weight_H, bias_H, stats, dropout)
    num_rows, tile = x.numel() // hidden, heuristics.norm_tile(hidden)
    grad_x, grad_y = torch.empty_like(x), torch.empty_like(y)
    if num_rows == 0:
        return grad_x, grad_y, torch.zeros_like(weight_H), torch.zeros_like(bias_H)
    span = heuristics.norm_span(num_rows, tile.m)
    parts = x.new_empty(cdiv(num_rows, span), 2 * hidden, dtype=torch.float32)
    launch(
        _residual_norm_backward_kernel, len(parts),
        grad, x, y, weight_H, stats, _seed(dropout), grad_x, grad_y, parts,
        num_rows, hidden, span, *dropout_arguments(dropout.rate),
        tile=tile, ALIGN=heuristics.alignment(hidden), BLOCK_T=tile.m, BLOCK_H=tile.n,
    )  # fmt: skip
    grad_weight_H, grad_bias_H = torch.empty_like(weight_H), torch.empty_like(bias_H)
    sum_parts(parts, [grad_weight_H, grad_bias_H])
    return grad_x, grad_y, grad_weight_H, grad_bias_H
