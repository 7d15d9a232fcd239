"""What one call costs before any arithmetic: a body called directly, behind an op, and inside an autograd Function.

The body does nothing, and takes the records of `moe_forward` and two of its four settings: what is left is the
boundary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import ops
from kernels.contract import Backend
from kernels.records import ExpertWeights, GateWeights, Rule, Tokens, flatten, pack


class Output(NamedTuple):
    y_TH: Tensor


def nothing(tokens: Tokens) -> Output:
    return Output(tokens.x_TH.new_empty(0, 1))


@ops.define(fake=lambda tokens, *rest: nothing(tokens), compute="experts_up_weight_EUH")
def boundary(
    backend: Backend, tokens: Tokens, gate: GateWeights, experts: ExpertWeights, rule: Rule, activation: str, keep: bool
) -> Output:
    return nothing(tokens)


KINDS = (Tokens, GateWeights, ExpertWeights, Rule, str, bool)


class Boundary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *flat):
        tokens, gate, experts, *settings = pack(flat, *KINDS)
        ctx.save_for_backward(*tokens, *gate, *experts)
        return boundary(tokens, gate, experts, *settings).y_TH

    @staticmethod
    def backward(ctx, grad):
        return (None,) * sum(len(getattr(kind, "_fields", [kind])) for kind in KINDS)


def contenders(device: torch.device) -> dict[str, Callable[[], object]]:
    def arguments(x: Tensor) -> tuple[object, ...]:
        rule = Rule(2, "softmax", True)
        return Tokens(x, x, x), GateWeights(x, x, x, x, x), ExpertWeights(x, x, x, x), rule, "gelu", True

    plain = arguments(torch.randn(1, 4, device=device))
    leaves = flatten(arguments(torch.randn(1, 4, device=device, requires_grad=True)))
    return {
        "body": lambda: nothing(plain[0]),
        "op": lambda: boundary(*plain),
        "op in an autograd function": lambda: Boundary.apply(*leaves),
    }
