"""What one call costs before any arithmetic: a body called directly, behind an op, and inside an autograd Function.

The body does nothing, and takes as many arguments as `moe_forward`: what is left is the boundary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import ops

TENSORS = 12


def nothing(*tensors: Tensor) -> Tensor:
    return tensors[0].new_empty(0)


@ops.define(
    f"boundary({', '.join(f'Tensor x{i}' for i in range(TENSORS))}, int k, str activation, bool keep) -> Tensor",
    fake=lambda *arguments: nothing(*arguments),
    compute="x0",
)
def boundary(backend, *arguments):
    return nothing(*arguments)


class Boundary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        ctx.save_for_backward(*arguments[:TENSORS])
        return boundary(*arguments)

    @staticmethod
    def backward(ctx, grad):
        return (None,) * (TENSORS + 3)


def contenders(device: torch.device) -> dict[str, Callable[[], object]]:
    x = torch.randn(1, 4, device=device)
    arguments = (*[x] * TENSORS, 2, "gelu", True)
    leaves = (*[x.clone().requires_grad_() for _ in range(TENSORS)], 2, "gelu", True)
    return {
        "body": lambda: nothing(*arguments),
        "op": lambda: boundary(*arguments),
        "op in an autograd function": lambda: Boundary.apply(*leaves),
    }
