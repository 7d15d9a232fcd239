"""The end of each half of a Transformer's block: LayerNorm(x + dropout(y)).

A backend may have it as one pass each way, the fusions `residual_norm` and `residual_norm_backward`; elsewhere it is
PyTorch's own functions, with its autograd. Shape suffixes: see `routing.py`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import dispatch, ops, validation
from kernels.contract import Backend
from kernels.dropout import Dropout, draw_dropout
from kernels.functional import records_gradient
from kernels.ops import empty_like


class Normed(NamedTuple):
    out: Tensor
    stats: Tensor
    """[..., 2] fp32: the mean and the scale of each row."""


@ops.define(
    fake=lambda x, y, *rest: Normed(
        x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, y.dtype)),
        x.new_empty(*x.shape[:-1], 2, dtype=torch.float32),
    ),
    compute="x",
)
def residual_norm_forward(
    backend: Backend, x: Tensor, y: Tensor, weight_H: Tensor, bias_H: Tensor, eps: float, dropout: Dropout
) -> Normed:
    return Normed(*backend.residual_norm(x, y, weight_H, bias_H, eps, dropout))


class NormGrads(NamedTuple):
    x: Tensor
    y: Tensor
    weight_H: Tensor
    bias_H: Tensor


@ops.define(
    fake=lambda grad, x, y, weight_H, bias_H, *rest: NormGrads(*map(empty_like, (x, y, weight_H, bias_H))),
    compute="x",
)
def residual_norm_backward(
    backend: Backend,
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    weight_H: Tensor,
    bias_H: Tensor,
    stats: Tensor,
    dropout: Dropout,
) -> NormGrads:
    return NormGrads(*backend.residual_norm_backward(grad, x, y, weight_H, bias_H, stats, dropout))


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, weight_H, bias_H, eps, rate, seed):
        out, stats = residual_norm_forward(x, y, weight_H, bias_H, eps, Dropout(rate, seed))
        ctx.save_for_backward(x, y, weight_H, bias_H, stats, seed)
        ctx.rate = rate
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *saved, seed = ctx.saved_tensors
        return *residual_norm_backward(grad, *saved, Dropout(ctx.rate, seed)), None, None, None


def _has_a_pass(x: Tensor, y: Tensor) -> bool:
    """Whether the backend has it as one pass. A compiler cannot look for backends: for it, CPUs have one, and for GPUs
    it makes one of PyTorch's functions itself."""
    if torch.compiler.is_compiling():
        return x.device.type == "cpu" and {x.dtype, y.dtype} <= {torch.float32, torch.bfloat16}
    dtypes = (x.dtype,) if x.dtype == y.dtype else (x.dtype, y.dtype)
    return all("residual_norm" in dispatch.pick(x.device, dtype).fusions for dtype in dtypes)


def residual_norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float, *, dropout: float = 0.0) -> Tensor:
    """LayerNorm(x + dropout(y)) over the last dimension: x and y [..., H], weight and bias [H] -> like x.

    Where x and y have different types, the result has the wider one. `dropout` drops elements of y whenever it is
    above 0: pass 0 outside of training.
    """
    validation.check_floating("x", x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must be [..., hidden size], got shape {tuple(x.shape)}")
    for argument, tensor, shape in (("y", y, x.shape), ("weight", weight, x.shape[-1:]), ("bias", bias, x.shape[-1:])):
        validation.check_shape(argument, tensor, tuple(shape))
        validation.check_floating(argument, tensor)
        validation.check_device(argument, tensor, "x is", x.device)
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
    if not _has_a_pass(x, y):
        return F.layer_norm(x + F.dropout(y, dropout), x.shape[-1:], weight, bias, eps)
    dropped = draw_dropout(dropout, x.device)
    if records_gradient(x, y, weight, bias):
        return _ResidualNorm.apply(x, y, weight, bias, eps, *dropped)
    return residual_norm_forward(x, y, weight, bias, eps, dropped).out
