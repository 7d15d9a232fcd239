"""The proof, before a layer is timed, that it computes the right thing on the timed inputs.

In fp64, from the formula: the output and the input gradient of every token, the gradients of every expert's weights and
biases, and of the router's parameters.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from bench.cases.layer import LayerCase, step
from bench.contenders.ffn import FFN, activate
from bench.contenders.gate import Gate
from bench.contenders.our_layer import Layer
from bench.harness.record import LIMIT, OURS
from kernels import SBMoE

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""‖out - ref‖ / ‖ref‖ of a tensor. A wrong activation, weight or route is off by 0.1 and more."""
PEERS_TOLERANCE = 0.25
"""Of peers' gradients of one expert in 16 bits, in which transformers adds biases to what is already rounded (so relu
may cut off what it should not), and adds up an expert's tokens: off by 0.04 at 1024 of them, by 0.08 in a small expert.
The same code is held to `TOLERANCE` in fp32."""

Tensors = dict[str, Sequence[Tensor]]
"""Name -> what is compared one by one: of the experts, a gradient each."""


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
    grad = grad_y if case.backward else None
    truth, limit, refused = _truth(layer, x, grad), None, {}
    for name, module in contenders.items():
        is_limit = name.split()[0] == LIMIT
        if is_limit and limit is None:
            limit = _dense_truth(module, x, grad)
        try:
            errors = _errors(module, x, grad, limit if is_limit else truth)
        except (RuntimeError, ValueError) as error:
            refused[name] = f"raises {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            continue
        limits = {tensor: _tolerance(case.dtype, name, tensor) for tensor in errors}
        wrong = {tensor: error for tensor, error in errors.items() if not error <= limits[tensor]}
        if wrong:
            refused[name] = ", ".join(f"{tensor} is off by {error:.1e}" for tensor, error in wrong.items())
    return refused


def _errors(module: nn.Module, x: Tensor, grad_y: Tensor | None, truth: Tensors) -> dict[str, float]:
    """By name, the largest."""
    got: Tensors = {"y": [step(module, x, None)()]}
    if grad_y is not None:
        got |= {"grad_x": [step(module, x, grad_y)()], **_gradients(module)}
    return {
        name: max(relative_error(out, ref) for out, ref in zip(got[name], expected, strict=True))
        for name, expected in truth.items()
    }


def _tolerance(dtype: torch.dtype, contender: str, tensor: str) -> float:
    lenient = contender != OURS and dtype != torch.float32 and tensor.startswith(("grad_up", "grad_down"))
    return PEERS_TOLERANCE if lenient else TOLERANCE[dtype]


def relative_error(out: Tensor | None, ref: Tensor) -> float:
    """Infinite where there is no gradient."""
    if out is None:
        return math.inf
    out, ref = out.detach().double(), ref.detach().double()
    return ((out - ref).norm() / ref.norm().clamp(min=1e-30)).item()


# What a contender has found.


def _gradients(module: nn.Module) -> Tensors:
    """Of its experts and its router."""
    if isinstance(module, FFN):
        return _of_separate([module])
    if isinstance(module.experts, nn.ModuleList):
        experts = _of_separate(module.experts)
    else:
        weights, biases = ([p.grad for p in module.experts.parameters() if p.ndim == ndim] for ndim in (3, 2))
        experts = dict(zip(("grad_up", "grad_down"), weights)) | dict(zip(("grad_up_bias", "grad_down_bias"), biases))
    gate = module.router if isinstance(module, Layer) else module.gate
    return experts | {name: [parameter.grad] for name, parameter in _router(gate)}


def _of_separate(experts: Iterable[FFN]) -> Tensors:
    found = defaultdict(list)
    for expert in experts:
        for name, linear in (("grad_up", expert.up), ("grad_down", expert.down)):
            found[name].append(linear.weight.grad)
            if linear.bias is not None:
                found[f"{name}_bias"].append(linear.bias.grad)
    return dict(found)


def _router(gate: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters of our router, or of the peers' gate."""
    last = gate.last if isinstance(gate, Gate) else gate
    yield "grad_router", last.weight
    if gate.hidden is not None:
        yield "grad_router_bias", last.bias
        yield "grad_hidden", gate.hidden.weight
        yield "grad_hidden_bias", gate.hidden.bias


# What is true.


def _truth(layer: Layer, x: Tensor, grad_y: Tensor | None) -> Tensors:
    """Expert by expert, each on its own tokens. Their gradients are kept in fp32: 256 experts have many."""
    x_TH, stacks = x.double().requires_grad_(), layer.experts
    router = {name: parameter.detach().double().requires_grad_() for name, parameter in _router(layer.router)}
    weights_TE = _gate(layer, router, x_TH)
    grad_weights_TE, is_residual = torch.zeros_like(weights_TE), isinstance(layer, SBMoE)
    y_TH = x.double() if is_residual else torch.zeros_like(x_TH)
    grad_x_TH = grad_y.double() if is_residual and grad_y is not None else torch.zeros_like(x_TH)
    gradients = defaultdict(list)
    for e in range(layer.num_experts):
        token = torch.where(weights_TE[:, e] > 0)[0]
        biases = {} if stacks.up_bias is None else {"up_bias": stacks.up_bias[e], "down_bias": stacks.down_bias[e]}
        parameters = {"up": stacks.up_weight[e], "down": stacks.down_weight[e], **biases}
        own = {"x": x[token], "weight_N1": weights_TE[token, e, None]} | parameters
        own_y_NH, own_grads = _ffn(layer.activation, own, None if grad_y is None else grad_y[token])
        y_TH[token] += own_y_NH
        if own_grads:
            grad_x_TH[token] += own_grads["x"]
            grad_weights_TE[token, e] = own_grads["weight_N1"][:, 0]
            for name in parameters:
                gradients[f"grad_{name}"].append(own_grads[name].float())
    if grad_y is None:
        return {"y": [y_TH]}
    weights_TE.backward(grad_weights_TE)
    found = {"y": [y_TH], "grad_x": [grad_x_TH + x_TH.grad], **gradients}
    if layer.renormalize and layer.top_k == 1:  # a weight that is always 1 gives the router rounding errors alone
        return found
    return found | {name: [parameter.grad] for name, parameter in router.items()}


def _gate(layer: Layer, router: dict[str, Tensor], x_NH: Tensor) -> Tensor:
    """-> weights_NE, zero for an expert that is not chosen"""
    if "grad_hidden" in router:
        x_NH = (x_NH @ router["grad_hidden"].T + router["grad_hidden_bias"]).relu()
    logits_NE = x_NH @ router["grad_router"].T + router.get("grad_router_bias", 0)
    probs_NE = logits_NE.softmax(-1)
    if layer.top_k != "all":
        lowest = probs_NE.detach().sort(-1, descending=True).values[:, int(layer.top_k) - 1, None]
        probs_NE = torch.where(probs_NE >= lowest, probs_NE, 0)
    return probs_NE / probs_NE.sum(-1, keepdim=True) if layer.renormalize else probs_NE


def _dense_truth(module: FFN, x: Tensor, grad_y: Tensor | None) -> Tensors:
    own = {"x": x, "weight_N1": x.new_ones(1), "up": module.up.weight, "down": module.down.weight}
    if module.up.bias is not None:
        own |= {"up_bias": module.up.bias, "down_bias": module.down.bias}
    y_NH, gradients = _ffn(module.activation, own, grad_y)
    return {"y": [y_NH]} | {f"grad_{name}": [grad] for name, grad in gradients.items() if name != "weight_N1"}


def _ffn(activation: str, given: dict[str, Tensor], grad_y: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """-> what an expert adds to the output, and the gradient of each thing given, if there is one of y"""
    wide = {name: tensor.detach().double().requires_grad_(grad_y is not None) for name, tensor in given.items()}
    pre_NU = wide["x"] @ wide["up"].T + wide.get("up_bias", 0)
    y_NH = wide["weight_N1"] * (activate(pre_NU, activation) @ wide["down"].T + wide.get("down_bias", 0))
    if grad_y is None:
        return y_NH, {}
    return y_NH.detach(), dict(zip(wide, torch.autograd.grad(y_NH, list(wide.values()), grad_y.double())))
