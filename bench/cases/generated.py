"""One case of generated experts: its sizes, its inputs, the call that is timed, and the proof that it is right."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.cases.correct import TOLERANCE, relative_error
from bench.contenders.our_layer import backend
from bench.harness.machine import name_of
from kernels import LowRankExperts


@dataclass(frozen=True)
class GeneratedCase:
    samples: int = 8
    passages: int = 5
    """Of each sample."""
    tokens: int = 256
    """Of each sample: 1 in decoding."""
    hidden: int = 512
    rank: int = 64
    dtype: torch.dtype = torch.bfloat16
    backward: bool = False

    def __str__(self) -> str:
        what = "decoding" if self.decodes else "prefill forward+backward" if self.backward else "prefill forward"
        sizes = f"N={self.samples} K={self.passages} T={self.tokens} H={self.hidden} R={self.rank}"
        return f"generated {sizes} {name_of(self.dtype)} {what}"

    @property
    def decodes(self) -> bool:
        return self.tokens == 1

    def settings(self, device: torch.device) -> dict[str, Any]:
        about = asdict(self) | {"dtype": name_of(self.dtype), "backend": backend(device, self.dtype)}
        return about | {"tokens": self.samples * self.tokens}

    @property
    def flops(self) -> float:
        """Of the products with the factors' sums."""
        slots = self.samples * self.tokens * self.passages
        return 2.0 * 4 * slots * self.hidden * self.rank * (3 if self.backward else 1)

    def shrunk(self) -> "GeneratedCase":
        """As it is in a smoke test."""
        return replace(
            self, samples=3, passages=2, tokens=min(self.tokens, 9), hidden=self.hidden // 32, rank=self.rank // 16
        )

    def inputs(self, device: torch.device) -> tuple["Inputs", Tensor]:
        """Unit-variance outputs from unit-variance inputs -> what contenders are called with, and the gradient of y. In
        decoding there is no base: it was added once for all tokens."""
        shapes = ((self.rank, self.hidden), (self.hidden, self.rank), *[(self.rank, self.hidden)] * 2)
        num_passages = self.samples * self.passages

        def draw(*shape: int, std: float = 1.0) -> Tensor:
            return (torch.randn(shape, device=device) * std).to(self.dtype).requires_grad_()

        def factors(*stack: int) -> LowRankExperts:
            enter, up, down, leave = (draw(*stack, *shape, std=(2 * shape[1]) ** -0.5) for shape in shapes)
            return LowRankExperts(enter, up, down, leave)

        starts = torch.arange(self.samples + 1, dtype=torch.int32, device=device) * self.passages
        x_NTH = draw(self.samples, self.tokens, self.hidden)
        scores_P = torch.randn(num_passages, device=device).requires_grad_()
        base = None if self.decodes else factors()
        return Inputs(x_NTH, factors(num_passages), scores_P, base, starts, self.passages), torch.randn_like(x_NTH)


class Inputs(NamedTuple):
    x_NTH: Tensor
    deltas: LowRankExperts
    scores_P: Tensor
    base: LowRankExperts | None
    cu_passages: Tensor
    max_passages: int
    """As many as each sample has."""

    @property
    def leaves(self) -> dict[str, Tensor]:
        base = {} if self.base is None else {f"base {name}": factor for name, factor in self.base._asdict().items()}
        return {"x": self.x_NTH, "scores": self.scores_P, **self.deltas._asdict(), **base}


Contender = Callable[[Inputs], Tensor]


BASE = GeneratedCase()
"""What the sweeps start from."""
SIZES = (512, 64), (1024, 128), (2048, 256), (4096, 512)
"""Hidden size and rank."""


def step(contender: Contender, inputs: Inputs, grad_y: Tensor | None) -> Callable[[], Any]:
    """-> what is timed: a forward without gradients, or a forward and the backward to everything"""
    leaves = list(inputs.leaves.values())

    def forward() -> Tensor:
        with torch.no_grad():
            return contender(inputs)

    def forward_and_backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(contender(inputs), leaves, grad_y)

    return forward if grad_y is None else forward_and_backward


GRADIENT_TOLERANCE = {torch.float32: 1e-2, torch.float16: 0.05, torch.bfloat16: 0.1}
"""Where rounding what enters relu takes it to the other side of 0, its gradient is another: of one number in a
thousand in bf16, which is 0.05 of the gradient's length; in fp32 of one among millions, which is 0.006 of that of its
passage, with the loop and with batched products, too."""


def prove(contenders: dict[str, Contender], inputs: Inputs, grad_y: Tensor | None) -> None:
    """Against the formula in fp64, passage by passage: the output, and where there is one, every gradient."""
    got = {name: {"y": step(contender, inputs, None)()} for name, contender in contenders.items()}
    for name, contender in contenders.items():
        if grad_y is not None:
            got[name] |= dict(zip(inputs.leaves, step(contender, inputs, grad_y)()))
    for tensor, place, expected in _truth(inputs, grad_y):
        tolerance = (TOLERANCE if tensor == "y" else GRADIENT_TOLERANCE)[inputs.x_NTH.dtype]
        for name, found in got.items():
            error = relative_error(found[tensor][place], expected)
            assert error <= tolerance, f"{name}: {tensor} is off by {error:.1e}"


def _truth(inputs: Inputs, grad_y: Tensor | None) -> Iterator[tuple[str, Any, Tensor]]:
    """(Tensor, place in it, what must be there). A passage's gradients are compared before the next one's are made."""
    most, fields, everywhere = inputs.max_passages, LowRankExperts._fields, slice(None)
    weights_NK = inputs.scores_P.detach().double().view(-1, most).softmax(-1)
    grad_weights_NK, grad_base = torch.zeros_like(weights_NK), [0.0] * len(fields)
    for n, x_TH in enumerate(inputs.x_NTH.detach().double()):
        y_TH, grad_x_TH = torch.zeros_like(x_TH), torch.zeros_like(x_TH)
        for k, weight in enumerate(weights_NK[n]):
            given = [t.requires_grad_(grad_y is not None) for t in (x_TH.clone(), *_factors(inputs, n * most + k))]
            own_TH = _expert(*given)
            y_TH += weight * own_TH.detach()
            if grad_y is None:
                continue
            grad_TH = grad_y[n].double()
            grad_weights_NK[n, k] = (own_TH.detach() * grad_TH).sum()
            own_grad_x_TH, *grads = torch.autograd.grad(own_TH, given, weight * grad_TH)
            grad_x_TH += own_grad_x_TH
            yield from ((field, n * most + k, grad) for field, grad in zip(fields, grads))
            grad_base = [total + grad for total, grad in zip(grad_base, grads)]
        yield "y", n, y_TH
        if grad_y is not None:
            yield "x", n, grad_x_TH
    if grad_y is None:
        return
    grad_NK = weights_NK * grad_weights_NK
    yield "scores", everywhere, (grad_NK - weights_NK * grad_NK.sum(-1, keepdim=True)).flatten()
    if inputs.base is not None:
        yield from ((f"base {field}", everywhere, grad) for field, grad in zip(fields, grad_base))


def _factors(inputs: Inputs, passage: int) -> list[Tensor]:
    """A passage's own, in fp64."""
    own = [factor[passage].detach().double() for factor in inputs.deltas]
    return own if inputs.base is None else [part + shared.detach() for part, shared in zip(own, inputs.base)]


def _expert(x_TH: Tensor, enter_RH: Tensor, up_HR: Tensor, down_RH: Tensor, leave_RH: Tensor) -> Tensor:
    return (x_TH @ enter_RH.T @ up_HR.T).relu() @ down_RH.T @ leave_RH
