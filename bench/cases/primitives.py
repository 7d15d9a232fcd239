"""The primitives of a backend, alone: their arguments for a layer, the work they do, and the proof that they do it."""

from dataclasses import dataclass
from types import ModuleType

import torch

from bench.cases.correct import TOLERANCE, relative_error
from bench.cases.layer import LayerCase
from bench.harness.machine import name_of
from bench.harness.peaks import peak_of
from bench.harness.record import OURS
from kernels import dispatch, reference

NAMES = (
    "gate", "plan", "up", "down", "down_backward", "up_backward", "up_weight_grad", "down_weight_grad", "combine",
)  # fmt: skip


@dataclass(frozen=True)
class Primitive:
    name: str
    layer: LayerCase

    def __str__(self):
        sizes = self.layer
        return (
            f"{self.name} T={sizes.tokens} H={sizes.hidden} F={sizes.ffn} E={sizes.experts} k={sizes.top_k} "
            f"{name_of(sizes.dtype)}"
        )


def twins(device: torch.device, dtype: torch.dtype) -> dict[str, ModuleType]:
    """Our backend, and the eager one where that is another."""
    backend = dispatch.pick(device, dtype)
    return {OURS: backend} | ({} if backend is reference else {"eager": reference})


def arguments_of(name, layer, x, grad_y):
    """-> what `functional.py` gives this primitive for this layer, made by the eager backend"""
    experts, router, top_k = layer.experts, layer.router, layer.top_k
    gate = (x, None, None, router.weight, None, None, None, None, top_k, "softmax", True)
    _, weights, indices, partials = reference.gate(*gate)
    order, offsets = reference.plan(indices, layer.num_experts)
    plan = (order, offsets)
    up = (x, *plan, experts.up_weight, experts.up_bias, top_k, layer.activation, True)
    act, pre = reference.up(*up)
    down = (act, *plan, weights, experts.down_weight, experts.down_bias, None, act.dtype)
    backward = (grad_y, pre, *plan, weights, experts.down_weight, experts.down_bias, layer.activation)
    grad_pre, weighted_act, _ = reference.down_backward(*backward)
    return {
        "gate": gate,
        "plan": (indices, layer.num_experts, partials),
        "up": up,
        "down": down,
        "down_backward": backward,
        "up_backward": (grad_pre, *plan, experts.up_weight),
        "up_weight_grad": (x, grad_pre, *plan, top_k, True),
        "down_weight_grad": (grad_y, weighted_act, *plan, weights, True),
        "combine": (reference.down(*down), top_k, None, None, x.dtype),
    }[name]


def work_of(case, arguments, results):
    """The least that a call must do: read its inputs and write its results once, and multiply."""
    sizes = case.layer
    tensors = [t for t in (*arguments, *_all(results)) if isinstance(t, torch.Tensor)]
    work = {"bytes": float(sum(t.nbytes for t in tensors))}
    if case.name in ("up", "down", "down_backward", "up_backward", "up_weight_grad", "down_weight_grad"):
        flops = 2.0 * sizes.tokens * sizes.active * sizes.hidden * sizes.ffn
        return work | {"flops": flops, "peak": peak_of(sizes.dtype)}
    if case.name == "gate":
        return work | {"flops": 2.0 * sizes.tokens * sizes.hidden * sizes.experts, "peak": peak_of(torch.float32)}
    return work


def _all(results):
    return results if isinstance(results, tuple) else (results,)


def assert_right(case, name, got, arguments):
    """Against the eager twin in fp64 on the same inputs; a plan is checked for what it promises."""
    if case.name == "plan":
        (order, offsets), (indices, num_experts, _) = got, arguments
        expert_S = indices.flatten()[order.long()]
        counts = torch.bincount(indices.flatten().long(), minlength=num_experts)
        assert torch.equal(offsets.long().cpu(), torch.nn.functional.pad(counts.cumsum(0), (1, 0)).cpu())
        rising = (expert_S.diff() > 0) | ((expert_S.diff() == 0) & (order.diff() > 0))
        assert rising.all(), f"{name}: the plan is not sorted, or not stable"
        return
    wide = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]
    if isinstance(arguments[-1], torch.dtype):
        wide[-1] = torch.float64
    expected = getattr(reference, case.name)(*wide)
    for number, (out, ref) in enumerate(zip(_all(got), _all(expected))):
        if ref is None:
            continue
        if case.name.endswith("backward") and number == 2:  # comes in parts, each backend's own choice
            out, ref = out.sum(-1), ref.sum(-1)
        if case.name == "gate" and number == 3:
            out, ref = out.sum(0), ref.sum(0)
        error = relative_error(out, ref)
        assert error <= TOLERANCE[case.layer.dtype], f"{name}: result {number} is off by {error:.1e} in {case}"
