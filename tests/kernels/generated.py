"""One case of generated experts: its sizes, its inputs, and the check against an fp64 loop over tokens and passages."""

from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import NamedTuple

import torch

import kernels
from kernels import LowRankExperts
from tests.kernels.cases import gradient_error
from tests.kernels.oracle import TOLERANCE, relative_error

HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    tokens: tuple[int, ...] = (3, 5, 2)
    passages: tuple[int, ...] = (2, 3, 1)
    """Of each sample."""
    hidden: int = 12
    rank: int = 5
    padded: bool = False
    """To the longest sample, and masked; else samples are laid end to end."""
    masked: bool = False
    based: bool = True
    most: int = 0
    """More than any sample has."""
    seed: int = 0

    def __str__(self):
        changed = [f"{k}={v}" for k, v in asdict(self).items() if v != getattr(type(self)(), k)]
        return "-".join(changed) or "default"


class Given(NamedTuple):
    x: torch.Tensor
    deltas: LowRankExperts
    scores: torch.Tensor
    base: LowRankExperts | None
    how: dict
    grad_y: torch.Tensor
    sample_T: list[int | None]
    """None where a token is masked."""

    def run(self):
        return kernels.generated_experts(self.x, self.deltas, self.scores, self.base, **self.how)

    @property
    def leaves(self):
        base = {} if self.base is None else {f"base {k}": t for k, t in self.base._asdict().items()}
        return {"x": self.x, "scores": self.scores, **self.deltas._asdict(), **base}


def make(case, device, dtype):
    """In 16 bits, what is multiplied are small multiples of a half, whose sums are exact up to relu: where rounding
    chose another side of it, a gradient would be another."""
    torch.manual_seed(case.seed)
    hidden, rank, num_passages = case.hidden, case.rank, sum(case.passages)
    longest = max(case.tokens, default=0)

    def draw(*shape, fan_in, steps=1):
        exact = torch.randint(-steps, steps + 1, shape) / 2
        return (exact if dtype in HALVES else torch.randn(shape) * fan_in**-0.5).to(device, dtype).requires_grad_()

    def factors(*stack):
        shapes = (rank, hidden), (hidden, rank), (rank, hidden), (rank, hidden)
        return LowRankExperts(*(draw(*stack, *shape, fan_in=shape[-1]) for shape in shapes))

    sample_T = [n if i < count else None for n, count in enumerate(case.tokens)
                for i in range(longest if case.padded else count)]  # fmt: skip
    if case.masked:
        sample_T = [None if t % 3 == 1 else n for t, n in enumerate(sample_T)]
    live_T = torch.tensor([n is not None for n in sample_T], dtype=torch.bool, device=device)
    x, grad_y = draw(len(sample_T), hidden, fan_in=1, steps=4).detach(), torch.randn(len(sample_T), hidden)
    grad_y = grad_y.to(device, dtype)
    x[~live_T] = grad_y[~live_T] = float("nan")
    starts = torch.tensor([0, *accumulate(case.passages)], dtype=torch.int32, device=device)
    how = dict(cu_passages=starts, max_passages=case.most or max(case.passages, default=0))
    shape = (len(case.tokens), longest) if case.padded else live_T.shape
    if case.padded or case.masked:
        how["mask"] = live_T.view(shape)
    if not case.padded:
        how["cu_seqlens"] = torch.tensor([0, *accumulate(case.tokens)], device=device)
    x, grad_y = (t.view(*shape, hidden) for t in (x, grad_y))
    base = factors() if case.based else None
    scores = torch.randn(num_passages, device=device).requires_grad_()
    return Given(x.requires_grad_(), factors(num_passages), scores, base, how, grad_y, sample_T)


def oracle(given, passages):
    """-> y, and the gradients of the leaves by name"""
    wide = {name: t.detach().double().cpu().nan_to_num().requires_grad_() for name, t in given.leaves.items()}
    first, hidden = [0, *accumulate(passages)], given.x.shape[-1]
    rows = []
    for x_H, n in zip(wide["x"].view(-1, hidden), given.sample_T):
        y_H = torch.zeros(hidden, dtype=torch.float64)
        mine = [] if n is None else range(first[n], first[n + 1])
        exps = {p: torch.exp(wide["scores"][p]) for p in mine}
        for p in mine:
            enter, up, down, leave = (
                wide[field][p] + wide.get(f"base {field}", torch.zeros(())) for field in LowRankExperts._fields
            )
            pre_H = up @ (enter @ x_H)
            y_H = y_H + exps[p] / sum(exps.values()) * ((down @ (pre_H * (pre_H > 0))) @ leave)
        rows.append(y_H)
    y = torch.stack(rows).view(given.x.shape) if rows else 0 * wide["x"]
    total = (y * given.grad_y.double().cpu().nan_to_num()).sum() + 0 * sum(t.sum() for t in wide.values())
    return y, dict(zip(wide, torch.autograd.grad(total, list(wide.values()))))


def check(case, device, dtype, slack=1):
    """Output and every gradient against the oracle, in the type's tolerance; exactly 0 where there is nothing to do."""
    given = make(case, device, dtype)
    y = given.run()
    grads = dict(zip(given.leaves, torch.autograd.grad(y, list(given.leaves.values()), given.grad_y)))
    assert (y.shape, y.dtype) == (given.x.shape, dtype)
    y64, grads64 = oracle(given, case.passages)
    errors = {"y": relative_error(y, y64)}
    for name, grad in grads.items():
        assert grad.dtype == given.leaves[name].dtype
        # that of a score is a difference, and of one passage alone there is none
        error = gradient_error if name == "scores" else relative_error
        errors[name] = error(grad, grads64[name])
    assert all(error <= slack * TOLERANCE[dtype] for error in errors.values()), errors
    silent = [t for t, n in enumerate(given.sample_T) if n is None or case.passages[n] == 0]
    for tensor in (y, grads["x"]):
        assert not tensor.view(-1, case.hidden)[silent].any(), "a token without passages, or a masked one, is not 0"
    with torch.no_grad():
        assert torch.equal(given.run(), y)
