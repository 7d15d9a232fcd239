"""The end of each half of a Transformer's block: LayerNorm(x + dropout(y)).

A backend may have it as one pass each way, `residual_norm` and `residual_norm_backward`; elsewhere it is PyTorch's own
functions, with its autograd. An op that was recorded or compiled can meet a backend that lacks the two: `_forward` and
`_backward` say here what they are. Shape suffixes: see `routing.py`.
"""

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import dispatch, ops, validation
from kernels.functional import records_gradient
from kernels.reference import dropout_hash, wide


@ops.define(
    "residual_norm_forward(Tensor x, Tensor y, Tensor weight, Tensor bias, float eps, float dropout, Tensor seed)"
    " -> (Tensor out, Tensor stats)",
    fake=lambda x, y, *rest: (
        x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, y.dtype)),
        x.new_empty(len(x), 2, dtype=torch.float32),
    ),
    compute="x",
)
def residual_norm_forward(
    backend: ModuleType,
    x_TH: Tensor,
    y_TH: Tensor,
    weight_H: Tensor,
    bias_H: Tensor,
    eps: float,
    dropout: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor]:
    forward = getattr(backend, "residual_norm", _forward)
    return forward(x_TH, y_TH, weight_H, bias_H, eps, dropout, seed)


@ops.define(
    "residual_norm_backward(Tensor grad, Tensor x, Tensor y, Tensor weight, Tensor bias, Tensor stats, float dropout,"
    " Tensor seed) -> (Tensor grad_x, Tensor grad_y, Tensor grad_weight, Tensor grad_bias)",
    fake=lambda grad, x, y, weight, bias, *rest: tuple(torch.empty_like(t) for t in (x, y, weight, bias)),
    compute="x",
)
def residual_norm_backward(
    backend: ModuleType,
    grad_TH: Tensor,
    x_TH: Tensor,
    y_TH: Tensor,
    weight_H: Tensor,
    bias_H: Tensor,
    stats_T2: Tensor,
    dropout: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    backward = getattr(backend, "residual_norm_backward", _backward)
    return backward(grad_TH, x_TH, y_TH, weight_H, bias_H, stats_T2, dropout, seed)


def _sum(x_TH: Tensor, y_TH: Tensor, dropout: float, seed: Tensor) -> tuple[Tensor, Tensor]:
    """-> x + dropout(y), and what y was multiplied by. Element (t, h) is dropped by `dropout_hash(seed, t, h)`."""
    row_T1, column_H = (torch.arange(n, device=x_TH.device) for n in x_TH.shape)
    keep_TH = dropout_hash(seed, row_T1[:, None], column_H) >= int(dropout * 2**32)
    factor_TH = keep_TH / (1 - dropout)
    return wide(x_TH) + wide(y_TH) * factor_TH, factor_TH


def _forward(
    x_TH: Tensor, y_TH: Tensor, weight_H: Tensor, bias_H: Tensor, eps: float, dropout: float, seed: Tensor
) -> tuple[Tensor, Tensor]:
    """-> out_TH, and stats_T2, the mean and the scale of each row: out = (sum - mean) * scale * weight + bias."""
    sum_TH, _ = _sum(x_TH, y_TH, dropout, seed)
    variance_T1, mean_T1 = torch.var_mean(sum_TH, -1, correction=0, keepdim=True)
    scale_T1 = (variance_T1 + eps).rsqrt()
    out_TH = (sum_TH - mean_T1) * scale_T1 * wide(weight_H) + wide(bias_H)
    return out_TH.to(torch.promote_types(x_TH.dtype, y_TH.dtype)), torch.cat([mean_T1, scale_T1], -1)


def _backward(
    grad_TH: Tensor,
    x_TH: Tensor,
    y_TH: Tensor,
    weight_H: Tensor,
    bias_H: Tensor,
    stats_T2: Tensor,
    dropout: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> grad_x_TH, grad_y_TH, grad_weight_H, grad_bias_H. The sum and the mask are computed again."""
    sum_TH, factor_TH = _sum(x_TH, y_TH, dropout, seed)
    mean_T1, scale_T1 = stats_T2.split(1, -1)
    normal_TH, grad_TH = (sum_TH - mean_T1) * scale_T1, wide(grad_TH)
    through_TH = grad_TH * wide(weight_H)
    along_T1 = (through_TH * normal_TH).mean(-1, keepdim=True)
    grad_sum_TH = (through_TH - through_TH.mean(-1, keepdim=True) - normal_TH * along_T1) * scale_T1
    return (
        grad_sum_TH.to(x_TH.dtype),
        (grad_sum_TH * factor_TH).to(y_TH.dtype),
        (grad_TH * normal_TH).sum(0).to(weight_H.dtype),
        grad_TH.sum(0).to(bias_H.dtype),
    )


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, weight, bias, eps, dropout, seed):
        out, stats = residual_norm_forward(x, y, weight, bias, eps, dropout, seed)
        ctx.save_for_backward(x, y, weight, bias, stats, seed)
        ctx.dropout = dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *saved, seed = ctx.saved_tensors
        return *residual_norm_backward(grad.contiguous(), *saved, ctx.dropout, seed), None, None, None


def _has_a_pass(x: Tensor, y: Tensor) -> bool:
    """Whether the backend has it as one pass. A compiler cannot look for backends: there, CPUs have one."""
    if torch.compiler.is_compiling():
        return x.device.type == "cpu" and {x.dtype, y.dtype} <= {torch.float32, torch.bfloat16}
    return all(hasattr(dispatch.pick(t.device, t.dtype), "residual_norm") for t in (x, y))


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
    if dropout > 0.0:  # drawn on the device, as in attention.py
        seed = torch.randint(2**31, (), device=x.device)
    else:
        seed = x.new_zeros((), dtype=torch.int64)
    x_TH, y_TH = (t.reshape(-1, x.shape[-1]).contiguous() for t in (x, y))
    tensors = (x_TH, y_TH, weight.contiguous(), bias.contiguous())
    if records_gradient(*tensors):
        out_TH = _ResidualNorm.apply(*tensors, eps, dropout, seed)
    else:
        out_TH, _ = residual_norm_forward(*tensors, eps, dropout, seed)
    return out_TH.view(x.shape)
