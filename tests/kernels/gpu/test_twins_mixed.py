"""The types that meet under autocast: routers in fp32, experts in 16 bits, and x, with the gradient of y, as the module
before left it: in fp32 from a residual connection, in 16 bits from a product."""

import pytest
import torch

pytest.importorskip("kernels.gpu.backend", exc_type=ImportError)

import kernels
from kernels import reference
from kernels.gpu import backend
from kernels.records import ExpertWeights, GateGrads, GateWeights, Rule, Tokens
from kernels.routing import ALL
from tests.kernels.gpu.compare import DEVICE, DTYPES, TOLERANCE, agree, normal, same

FP32 = torch.float32
TOKENS, HIDDEN, FFN, EXPERTS = 70, 40, 24, 5
HALVES = [dtype for dtype in DTYPES if dtype != FP32]
TYPES = [(half, x) for half in HALVES for x in (FP32, half)]
"""Of the experts, of x."""
LAYERS = {
    "MoE": (2, False, "gelu"),
    "MoE gated": (2, False, "swiglu"),
    "SBMoE": (1, True, "relu"),
    "SBMoE all": (ALL, True, "relu"),
}
"""top_k, whether it is the pooled layer (an mlp as its gate, x added to the result), activation"""


def router(is_pooled):
    if not is_pooled:
        return GateWeights(None, None, normal(EXPERTS, HIDDEN) / HIDDEN**0.5)
    hidden = normal(HIDDEN // 2, HIDDEN) / HIDDEN**0.5, normal(HIDDEN // 2)
    return GateWeights(*hidden, normal(EXPERTS, HIDDEN // 2) / HIDDEN**0.5, normal(EXPERTS))


def experts_of(half, activation):
    width = 2 * FFN if activation == "swiglu" else FFN
    up, down = normal(EXPERTS, width, HIDDEN) / HIDDEN**0.5, normal(EXPERTS, HIDDEN, FFN) / FFN**0.5
    return ExpertWeights._make(t.to(half) for t in (up, normal(EXPERTS, width), down, normal(EXPERTS, HIDDEN)))


def routed(x, grad_y, routing, experts, top_k, activation, residual, near):
    """Forward and backward of what was routed -> the gradients that flow on, of x and of the weights."""
    plan = agree("plan", routing.indices_TK, EXPERTS, tolerance=0)
    act, pre = agree("up", x, plan, experts, top_k, activation, True, tolerance=near)
    if top_k == 1:
        y = agree("down", act, plan, routing.weights_TK, experts, residual, x.dtype, tolerance=near)
    else:
        rows = agree("down", act, plan, routing.weights_TK, experts, None, act.dtype, tolerance=near)
        y = agree("combine", rows, top_k, residual, None, x.dtype, tolerance=near)
    assert y.dtype == x.dtype
    backward = (grad_y, pre, plan, routing.weights_TK, experts, activation)
    grad_pre, weighted_act, grad_weights = agree("down_backward", *backward, tolerance=near, reduce=2)
    agree("down_weight_grad", grad_y, weighted_act, plan, routing.weights_TK, True, tolerance=near)
    agree("up_weight_grad", x, grad_pre, plan, top_k, True, tolerance=near)
    return agree("up_backward", grad_pre, plan, experts, tolerance=near), grad_weights


def of_every_expert(x, grad_y, routing, experts, activation, residual, near):
    weights = routing.weights_TK
    act, pre = agree("all_up", x, weights, experts, activation, True, tolerance=near)
    y = agree("all_down", act, weights, experts, residual, x.dtype, tolerance=near)
    assert y.dtype == x.dtype
    grad_pre, weighted_act, grad_weights = agree(
        "all_down_backward", grad_y, pre, weights, experts, activation, tolerance=near, reduce=2
    )
    agree("all_down_weight_grad", grad_y, weighted_act, weights, True, tolerance=near)
    agree("all_up_weight_grad", x, grad_pre, True, tolerance=near)
    return agree("all_up_backward", grad_pre, experts, tolerance=near), grad_weights


@pytest.mark.parametrize("half,x_dtype", TYPES, ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_primitive(layer, half, x_dtype):
    """Products are in the experts' type; what leaves the layer, and the gradient of x, are in x's; the router's own
    gradients, and what it chose, have no less than fp32, whatever x is."""
    top_k, is_pooled, activation = LAYERS[layer]
    x, grad_y = normal(TOKENS, HIDDEN, dtype=x_dtype), normal(TOKENS, HIDDEN, dtype=x_dtype)
    gate, experts, rule = router(is_pooled), experts_of(half, activation), Rule(top_k, "softmax", not is_pooled)
    residual, near = x if is_pooled else None, TOLERANCE[half]
    tokens = Tokens(x, None, normal(TOKENS, EXPERTS) if is_pooled else None)
    (ours, our_partials), (routing, partials) = backend.gate(tokens, gate, rule), reference.gate(tokens, gate, rule)
    assert all(same(a, b, 1e-5) for a, b in zip([*ours, our_partials.sum(0)], [*routing, partials.sum(0)]))
    if top_k == ALL:
        grad_rows, grad_weights = of_every_expert(x, grad_y, routing, experts, activation, residual, near)
    else:
        grad_rows, grad_weights = routed(x, grad_y, routing, experts, top_k, activation, residual, near)
    sums = normal(2 * EXPERTS + 2)
    agree("choose_backward", grad_weights, sums, routing, None, rule, tolerance=1e-5)
    grads = GateGrads(grad_weights, sums, grad_rows, grad_y if is_pooled else None)
    grad_x, grad_gate, _ = backend.gate_backward(grads, tokens, routing, gate, rule)
    assert grad_x.dtype == x_dtype
    assert {grad.dtype for grad in grad_gate if grad is not None} == {FP32}
    agree("gate_backward", grads, tokens, routing, gate, rule, tolerance=near if x_dtype == half else 3e-5)


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("kind", ["MoE", "SBMoE"])
def test_a_step_of_training(half, kind):
    """As a module under autocast, on leaves in fp32, against the eager backend."""
    if kind == "MoE":
        layer = kernels.MoE(HIDDEN, FFN, num_experts=EXPERTS, top_k=2).to(DEVICE)
    else:
        layer = kernels.SBMoE(HIDDEN, num_experts=EXPERTS, noise=False).to(DEVICE)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    x, grad_y, found = normal(TOKENS, HIDDEN), normal(TOKENS, HIDDEN), []
    for name in ("triton", "eager"):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        with kernels.use_backend(name), torch.autocast(DEVICE.type, half):
            y = layer(leaf)
            loss = kernels.aux_loss(layer)
        with kernels.use_backend(name):
            torch.autograd.backward([y, loss], [grad_y, torch.ones_like(loss)])
        found.append([y, leaf.grad, *(parameter.grad for parameter in layer.parameters())])
        assert {tensor.dtype for tensor in found[-1]} == {FP32}
    assert all(same(ours, eager, TOLERANCE[half]) for ours, eager in zip(*found))
