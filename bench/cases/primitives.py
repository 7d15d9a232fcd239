"""The primitives of a backend, alone: their arguments for a layer, the work they do, and the proof that they do it."""

from dataclasses import dataclass

import torch

from bench.cases.correct import TOLERANCE, relative_error
from bench.cases.layer import LayerCase
from bench.harness.machine import name_of
from bench.harness.peaks import peak_of
from bench.harness.record import OURS
from kernels import dispatch, reference
from kernels.contract import Backend
from kernels.records import Tokens

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


def twins(device: torch.device, dtype: torch.dtype) -> dict[str, Backend]:
    """Our backend, and the eager one where that is another."""
    backend, eager = dispatch.pick(device, dtype), dispatch.get("eager")
    return {OURS: backend} | ({} if backend is eager else {"eager": eager})


def arguments_of(name, layer, x, grad_y):
    """-> what `functional.py` gives this primitive for this layer, made by the eager backend"""
    experts, top_k = layer.expert_weights(), layer.top_k
    gate = (Tokens(x), layer.gate_weights(), layer.rule())
    routing, partials = reference.gate(*gate)
    weights, indices, _ = routing
    plan = reference.plan(indices, layer.num_experts)
    up = (x, plan, experts, top_k, layer.activation, True)
    act, pre = reference.up(*up)
    down = (act, plan, weights, experts, None, act.dtype)
    backward = (grad_y, pre, plan, weights, experts, layer.activation)
    grad_pre, weighted_act, _ = reference.down_backward(*backward)
    return {
        "gate": gate,
        "plan": (indices, layer.num_experts, partials),
        "up": up,
        "down": down,
        "down_backward": backward,
        "up_backward": (grad_pre, plan, experts),
        "up_weight_grad": (x, grad_pre, plan, top_k, True),
        "down_weight_grad": (grad_y, weighted_act, plan, weights, True),
        "combine": (reference.down(*down), top_k, None, None, x.dtype),
    }[name]


def work_of(case, arguments, results):
    """The least that a call must do: read its inputs and write its results once, and multiply."""
    sizes = case.layer
    unused = UNUSED.get(case.name, ())
    tensors = [t for t in (*leaves(arguments, unused), *leaves(results)) if isinstance(t, torch.Tensor)]
    work = {"bytes": float(sum(t.nbytes for t in tensors))}
    if case.name in ("up", "down", "down_backward", "up_backward", "up_weight_grad", "down_weight_grad"):
        flops = 2.0 * sizes.tokens * sizes.active * sizes.hidden * sizes.ffn
        return work | {"flops": flops, "peak": peak_of(sizes.dtype)}
    if case.name == "gate":
        return work | {"flops": 2.0 * sizes.tokens * sizes.hidden * sizes.experts, "peak": peak_of(torch.float32)}
    return work


UNUSED = {
    "up": ("down_weight_EHF", "down_bias_EH"),
    "up_backward": ("up_bias_EU", "down_weight_EHF", "down_bias_EH"),
    "down": ("up_weight_EUH", "up_bias_EU"),
    "down_backward": ("up_weight_EUH", "up_bias_EU"),
}
"""Fields of the experts that a primitive does not read."""


def leaves(values, unused=()):
    """What is in records too, but for their fields of these names."""
    if not isinstance(values, tuple):
        return [values]
    names = getattr(values, "_fields", [""] * len(values))
    return [leaf for name, value in zip(names, values) if name not in unused for leaf in leaves(value, unused)]


def wide(value):
    if isinstance(value, tuple):
        parts = [wide(part) for part in value]
        return value._make(parts) if hasattr(value, "_make") else tuple(parts)
    if isinstance(value, torch.dtype):
        return torch.float64
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


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
    expected = getattr(reference, case.name)(*wide(arguments))
    for number, (out, ref) in enumerate(zip(leaves(got), leaves(expected))):
        if ref is None:
            continue
        if case.name.endswith("backward") and number == 2:  # comes in parts, each backend's own choice
            out, ref = out.sum(-1), ref.sum(-1)
        if case.name == "gate" and number == 3:
            out, ref = out.sum(0), ref.sum(0)
        error = relative_error(out, ref)
        assert error <= TOLERANCE[case.layer.dtype], f"{name}: result {number} is off by {error:.1e} in {case}"
