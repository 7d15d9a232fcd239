"""The activations of an expert and of a feed-forward part, and their gradients: the one table of them.

The C++ and the Triton kernels compute the same functions under the same names.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "gelu": (F.gelu, torch.ops.aten.gelu_backward),
    "gelu_tanh": (
        lambda pre: F.gelu(pre, approximate="tanh"),
        # Beyond 12 the slope is 0 or 1, and the square of a large number would be infinite.
        lambda grad, pre: torch.ops.aten.gelu_backward(grad, pre.clamp(-12, 12), approximate="tanh"),
    ),
    "relu": (F.relu, lambda grad, pre: torch.ops.aten.threshold_backward(grad, pre, 0)),
    "silu": (F.silu, torch.ops.aten.silu_backward),
}
"""Name -> the function, and gradient times derivative."""

GATED = {"swiglu": "silu", "geglu": "gelu"}
"""Name -> the function that is applied to the first half of the rows, which then multiplies the second."""


def width_of(ffn_size: int, activation: str) -> int:
    """Rows of `up_weight` for activations of this size."""
    return 2 * ffn_size if activation in GATED else ffn_size


def activate(pre: Tensor, activation: str) -> Tensor:
    """[..., U] -> [..., F]"""
    if activation in GATED:
        gate, value = pre.chunk(2, -1)
        return ACTIVATIONS[GATED[activation]][0](gate) * value
    return ACTIVATIONS[activation][0](pre)


def activate_backward(grad: Tensor, pre: Tensor, activation: str) -> Tensor:
    """The gradient of `activate` with respect to `pre`: [..., F], [..., U] -> [..., U]"""
    if activation in GATED:
        function, derivative = ACTIVATIONS[GATED[activation]]
        gate, value = pre.chunk(2, -1)
        return torch.cat([derivative(grad * value, gate.contiguous()), grad * function(gate)], -1)
    return ACTIVATIONS[activation][1](grad, pre)
