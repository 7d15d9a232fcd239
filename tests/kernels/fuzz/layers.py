"""A layer with random settings, sizes and memory layouts, forward and backward, against one token and one expert at a
time in fp64."""

from dataclasses import dataclass

import torch

from tests.kernels.cases import Case
from tests.kernels.cases import check as check_case
from tests.kernels.fuzz.types import draw_type
from tests.kernels.test_contiguity import LAYOUTS

FEW = 100
"""Numbers of a gradient, each a sum over tokens. In one case of thousands they all cancel: what is left is then less
than usual by the root of the number of tokens, and so is what an error is measured by."""


@dataclass(frozen=True)
class LaidOut(Case):
    """With its parameters in memory in some way."""

    layout: str | None = None

    def build(self, device, dtype):
        layer = super().build(device, dtype)
        for parameter in layer.parameters() if self.layout else ():
            parameter.data = LAYOUTS[self.layout](parameter.data)
        return layer


def draw_case(draw, backend):
    small = backend == "triton"
    experts = draw.choice((1, 2, 3, 4, 5, 8, 9) if small else (1, 2, 3, 4, 7, 8, 16, 33, 70))
    return LaidOut(
        layer=draw.choice(("MoE", "SBMoE")),
        tokens=draw.choice((0, 1, 2, 3, 13) if small else (0, 1, 2, 5, 16, 17, 40, 130, 300)),
        hidden=draw.randint(1, 40 if small else 130),
        ffn=draw.randint(1, 40 if small else 130),
        experts=experts,
        top_k=draw.choice((1, 1, min(2, experts), draw.randint(1, experts), "all")),
        activation=draw.choice(("gelu", "gelu_tanh", "relu", "silu", "swiglu", "geglu")),
        router=draw.choice(("softmax", "topk_softmax", "sigmoid")),
        renormalize=draw.random() < 0.5,
        gate=draw.choice(("linear", "mlp")),
        noise=draw.random() < 0.3,
        bias=draw.random() < 0.7,
        masked=draw.random() < 0.4,
        crowded=draw.random() < 0.3,
        seed=draw.randrange(10**6),
        layout=draw.choice((None, None, *LAYOUTS)),
    )


def check(draw, backend):
    case, dtype = draw_case(draw, backend), draw_type(draw, backend)
    check_case(case, torch.device("cpu"), dtype, slack=lambda size: max(3, case.tokens**0.5) if size < FEW else 1)
    return case, dtype
