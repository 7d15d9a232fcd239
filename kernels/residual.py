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
    "residual_norm_forward(Tensor x, Tensor y, Tensor weight, Tensor bias, float eps, float dropout, Tensor? seed)"
    " -> (Tensor out, Tensor stats)",
    fake=lambda x, y, *rest: (
        x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, y.dtype)),
        x.new_empty(*x.shape[:-1], 2, dtype=torch.float32),
    ),
    compute="x",
)
def residual_norm_forward(
    backend: ModuleType,
    x: Tensor,
    y: Tensor,
    weight_H: Tensor,
    bias_H: Tensor,
    eps: float,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    forward = getattr(backend, "residual_norm", _forward)
    return forward(x, y, weight_H, bias_H, eps, dropout, seed)


@ops.define(
    "residual_norm_backward(Tensor grad, Tensor x, Tensor y, Tensor weight, Tensor bias, Tensor stats, float dropout,"
    " Tensor? seed) -> (Tensor grad_x, Tensor grad_y, Tensor grad_weight, Tensor grad_bias)",
    fake=lambda grad, x, y, weight, bias, *rest: tuple(torch.empty_like(t) for t in (x, y, weight, bias)),
    compute="x",
)
def residual_norm_backward(
    backend: ModuleType,
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    weight_H: Tensor,
    bias_H: Tensor,
    stats: Tensor,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    backward = getattr(backend, "residual_norm_backward", _backward)
    return backward(grad, x, y, weight_H, bias_H, stats, dropout, seed)


def _sum(x: Tensor, y: Tensor, dropout: float, seed: Tensor | None) -> tuple[Tensor, Tensor | float]:
    """-> x + dropout(y), and what y was multiplied by. Element (t, h) is dropped by `dropout_hash(seed, t, h)`."""
    if seed is None:
        return wide(x) + wide(y), 1.0
    place = torch.arange(x.numel(), device=x.device).view(x.shape)
    factor = (dropout_hash(seed, place // x.shape[-1], place % x.shape[-1]) >= int(dropout * 2**32)) / (1 - dropout)
    return wide(x) + wide(y) * factor, factor


def _forward(
    x: Tensor, y: Tensor, weight_H: Tensor, bias_H: Tensor, eps: float, dropout: float, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """-> out, and stats [..., 2], the mean and the scale of each row: out = (sum - mean) * scale * weight + bias."""
    total, _ = _sum(x, y, dropout, seed)
    mean = total.mean(-1, keepdim=True)
    scale = ((total - mean).square().mean(-1, keepdim=True) + eps).rsqrt()
    out = (total - mean) * scale * wide(weight_H) + wide(bias_H)
    return out.to(torch.promote_types(x.dtype, y.dtype)), torch.cat([mean, scale], -1)


def _backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    weight_H: Tensor,
    bias_H: Tensor,
    stats: Tensor,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> grad_x, grad_y, grad_weight_H, grad_bias_H. The sum and the mask are computed again."""
    total, factor = _sum(x, y, dropout, seed)
    mean, scale = stats.split(1, -1)
    normal, grad = (total - mean) * scale, wide(grad)
    through = grad * wide(weight_H)
    along = (through * normal).mean(-1, keepdim=True)
    grad_sum = (through - through.mean(-1, keepdim=True) - normal * along) * scale
    return (
        grad_sum.to(x.dtype),
        (grad_sum * factor).to(y.dtype),
        (grad * normal).view(-1, x.shape[-1]).sum(0).to(weight_H.dtype),
        grad.view(-1, x.shape[-1]).sum(0).to(bias_H.dtype),
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
    """Whether the backend has it as one pass. A compiler cannot look for backends: for it, CPUs have one."""
    if torch.compiler.is_compiling():
        return x.device.type == "cpu" and {x.dtype, y.dtype} <= {torch.float32, torch.bfloat16}
    has = hasattr(dispatch.pick(x.device, x.dtype), "residual_norm")
    return has and (y.dtype == x.dtype or hasattr(dispatch.pick(x.device, y.dtype), "residual_norm"))


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
    # The seed is drawn on the device, as in attention.py.
    seed = torch.randint(2**31, (), device=x.device) if dropout > 0.0 else None
    tensors = (x.contiguous(), y.contiguous(), weight.contiguous(), bias.contiguous())
    if records_gradient(*tensors):
        return _ResidualNorm.apply(*tensors, eps, dropout, seed)
    return residual_norm_forward(*tensors, eps, dropout, seed)[0]
