"""What `kernels.gpu.sweep` calls, on real tensors: every primitive of a layer, and the end of half a block, forward and
backward, for any types."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from kernels.gpu import (
    all_experts,
    combine,
    gate,
    gate_backward,
    grouped,
    grouped_backward,
    plan,
    residual_norm,
    sweep,
    weight_grad,
)

CALLS = {
    gate: ("gate", "choose"),
    plan: ("plan",),
    grouped: ("up", "down"),
    combine: ("combine",),
    grouped_backward: ("down_backward", "up_backward"),
    weight_grad: ("down_weight_grad", "up_weight_grad"),
    all_experts: (
        "all_up", "all_down", "all_down_backward", "all_down_weight_grad", "all_up_weight_grad", "all_up_backward",
    ),
    gate_backward: ("choose_backward", "gate_backward"),
    residual_norm: ("residual_norm", "residual_norm_backward"),
}  # fmt: skip
"""By module."""


def random(*shape: int, dtype: torch.dtype, device: torch.device | str, std: float = 1.0) -> Tensor:
    if dtype == torch.bool:
        return torch.rand(shape, device=device) < 0.8
    return (torch.randn(shape, device=device) * std).to(dtype)


@contextmanager
def on_real_tensors(device: torch.device | str, instead: Callable[[str], Callable[..., Any]]) -> Iterator[None]:
    """`sweep` then makes tensors with numbers in them, and calls `instead(name)` in place of each primitive. A stack of
    matrices keeps the variance of what it is multiplied with; all else is small: sums over tokens fit into fp16."""

    def empty(*shape, dtype):
        std = shape[-1] ** -0.5 if len(shape) == 3 else 0.25
        return random(*shape, dtype=dtype, device=device, std=std)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(sweep, "_empty", empty))
        for module, names in CALLS.items():
            for name in names:
                stack.enter_context(mock.patch.object(module, name, instead(name)))
        yield
