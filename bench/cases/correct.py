"""The proof, before a layer is timed, that it computes the right thing on the timed inputs.

In fp64, from the formula, for some tokens (their outputs and the gradients of their inputs) and for the busiest expert
(the gradients of its weights): what all tokens together would say, at a price that every case can pay.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bench.cases.layer import LayerCase, step
from bench.contenders.ffn import FFN, activate
from bench.contenders.our_layer import Layer
from bench.harness.record import LIMIT, OURS
from kernels import SBMoE

ROWS = 48
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""‖out - ref‖ / ‖ref‖ of a tensor. A wrong activation, weight or route is off by 0.1 and more."""


def check(case: LayerCase, layer: Layer, contenders: dict[str, nn.Module], x: Tensor, grad_y: Tensor) -> None:
    """Raises AssertionError, naming the contender and the tensor."""
    refused = refuse(case, layer, contenders, x, grad_y)
    assert not refused, "; ".join(f"{name}: {reason}" for name, reason in refused.items()) + f" in {case}"


def prove(
    case: LayerCase, layer: Layer, contenders: dict[str, nn.Module], x: Tensor, grad_y: Tensor, strict: bool
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """-> those that are right, and why the others are not timed. Ours must be right; if `strict`, all must."""
    refused = refuse(case, layer, contenders, x, grad_y)
    assert OURS not in refused and not (strict and refused), f"{refused} in {case}"  # noqa: PT018
    return {name: module for name, module in contenders.items() if name not in refused}, refused


def refuse(
    case: LayerCase, layer: Layer, contenders: dict[str, nn.Module], x: Tensor, grad_y: Tensor
) -> dict[str, str]:
    """Contenders that compute something else, or nothing, and what."""
    rows = torch.randperm(len(x), device=x.device)[:ROWS]
    truth = _truth(layer, x, grad_y, rows, case.backward)
    refused = {}
    for name, module in contenders.items():
        expected = truth if name != LIMIT else _dense_truth(module, x, grad_y, rows, case.backward)
        try:
            errors = _errors(module, x, grad_y, rows, expected)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            refused[name] = f"raises {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            continue
        wrong = {tensor: error for tensor, error in errors.items() if not error <= TOLERANCE[case.dtype]}
        if wrong:
            refused[name] = ", ".join(f"{tensor} is off by {error:.1e}" for tensor, error in wrong.items())
    return refused


def _errors(
    module: nn.Module, x: Tensor, grad_y: Tensor, rows: Tensor, expected: dict[str, Tensor]
) -> dict[str, float]:
    got = {"y": step(module, x, None)()[rows]}
    if "grad_x" in expected:
        got["grad_x"] = step(module, x, grad_y)()[rows]
        if hasattr(module, "experts"):
            got |= _weight_gradients(module, expected["expert"])
    return {tensor: relative_error(got[tensor], expected[tensor]) for tensor in got}


def relative_error(out: Tensor, ref: Tensor) -> float:
    out, ref = out.detach().double(), ref.detach().double()
    return ((out - ref).norm() / ref.norm().clamp(min=1e-30)).item()


def _weight_gradients(module: nn.Module, expert: int) -> dict[str, Tensor]:
    experts = module.experts
    if isinstance(experts, nn.ModuleList):
        return {"grad_up": experts[expert].up.weight.grad, "grad_down": experts[expert].down.weight.grad}
    up, down = [parameter for parameter in experts.parameters() if parameter.ndim == 3]
    return {"grad_up": up.grad[expert], "grad_down": down.grad[expert]}


def _truth(layer: Layer, x: Tensor, grad_y: Tensor, rows: Tensor, backward: bool) -> dict[str, Tensor]:
    x_NH = x[rows].double().requires_grad_()
    weights_NE = _gate(layer, x_NH)
    y_NH = x_NH if isinstance(layer, SBMoE) else torch.zeros_like(x_NH)
    for e in range(layer.num_experts):
        chosen = torch.where(weights_NE[:, e] > 0)[0]
        if len(chosen):
            y_NH = y_NH.index_add(0, chosen, weights_NE[chosen, e, None] * _expert(layer, e, x_NH[chosen])[0])
    truth = {"y": y_NH}
    if backward:
        y_NH.backward(grad_y[rows].double())
        truth["grad_x"] = x_NH.grad
        with torch.no_grad():
            weights_TE = _gate(layer, x.double())
        expert = int((weights_TE > 0).sum(0).argmax())
        chosen = torch.where(weights_TE[:, expert] > 0)[0]
        y_NH, up, down = _expert(layer, expert, x[chosen].double())
        (weights_TE[chosen, expert, None] * y_NH).backward(grad_y[chosen].double())
        truth |= {"expert": expert, "grad_up": up.grad, "grad_down": down.grad}
    return truth


def _gate(layer: Layer, x_NH: Tensor) -> Tensor:
    """-> weights_NE, zero for an expert that is not chosen"""
    router = layer.router
    if router.hidden is not None:
        x_NH = (x_NH @ router.hidden.weight.double().T + router.hidden.bias.double()).relu()
    logits_NE = x_NH @ router.weight.double().T
    if router.bias is not None:
        logits_NE = logits_NE + router.bias.double()
    probs_NE = logits_NE.softmax(-1)
    if layer.top_k != "all":
        lowest = probs_NE.sort(-1, descending=True).values[:, int(layer.top_k) - 1, None]
        probs_NE = torch.where(probs_NE >= lowest, probs_NE, 0)
    return probs_NE / probs_NE.sum(-1, keepdim=True) if layer.renormalize else probs_NE


def _expert(layer: Layer, e: int, x_NH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-> y_NH and the fp64 copies of the expert's two weights"""
    experts = layer.experts
    up, down = (w[e].detach().double().requires_grad_() for w in (experts.up_weight, experts.down_weight))
    biases = (None, None) if experts.up_bias is None else (experts.up_bias[e], experts.down_bias[e])
    return _ffn(x_NH, (up, down), biases, layer.activation), up, down


def _ffn(x_NH: Tensor, weights: tuple[Tensor, Tensor], biases: Sequence[Tensor | None], activation: str) -> Tensor:
    up_bias, down_bias = (0 if bias is None else bias.detach().double() for bias in biases)
    return activate(x_NH @ weights[0].T + up_bias, activation) @ weights[1].T + down_bias


def _dense_truth(module: FFN, x: Tensor, grad_y: Tensor, rows: Tensor, backward: bool) -> dict[str, Tensor]:
    x_NH = x[rows].double().requires_grad_()
    up, down = module.up, module.down
    y_NH = _ffn(x_NH, (up.weight.double(), down.weight.double()), (up.bias, down.bias), module.activation)
    if not backward:
        return {"y": y_NH}
    (grad_x,) = torch.autograd.grad(y_NH, x_NH, grad_y[rows].double())
    return {"y": y_NH, "grad_x": grad_x}
