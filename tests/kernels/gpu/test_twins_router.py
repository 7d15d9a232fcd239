"""Gate, choice and plan, forward and backward."""

import itertools

import pytest
import torch

pytest.importorskip("kernels.gpu.backend", exc_type=ImportError)

from kernels import reference
from kernels.gpu import backend, heuristics
from kernels.records import GateGrads, GateWeights, Rule, Tokens
from kernels.routing import ALL, ROUTERS, count_slots
from tests.kernels.gpu.compare import DEVICE, DTYPES, TOLERANCE, agree, normal, same

HIDDEN, WIDTH = 24, 13


def router(num_experts, mlp, dtype):
    """hidden_weight, hidden_bias, weight, bias"""
    if not mlp:
        return None, None, normal(num_experts, HIDDEN, dtype=dtype) / 4, None
    hidden = normal(WIDTH, HIDDEN, dtype=dtype) / 4, normal(WIDTH, dtype=dtype)
    return *hidden, normal(num_experts, WIDTH, dtype=dtype) / 4, normal(num_experts, dtype=dtype)


SHAPES = [(1, 1, 1), (37, 6, 2), (37, 6, 6), (70, 3, ALL)]
RULES = list(itertools.product(ROUTERS, (True, False)))


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("num_tokens,num_experts,top_k", SHAPES)
def test_gate(num_tokens, num_experts, top_k, rule):
    """Masked rows of x hold NaN and come out as zeros; the plan from the gate's counts is the plan."""
    masked, mlp = rule[1], rule[0] != "softmax"
    mask = (torch.rand(num_tokens) < 0.7).to(DEVICE) if masked else None
    for x_dtype, dtype in [*zip(DTYPES, DTYPES), (DTYPES[1], DTYPES[0])]:
        x = normal(num_tokens, HIDDEN, dtype=x_dtype)
        x = x if mask is None else torch.where(mask[:, None], x, torch.nan)
        noise = normal(num_tokens, num_experts) if masked else None
        selection = normal(num_experts) if rule[0] == "sigmoid" else None
        layer = router(num_experts, mlp, dtype)
        arguments = Tokens(x, mask, noise), GateWeights(*layer, selection), Rule(top_k, *rule)
        (ours, our_partials), (twins, twin_partials) = backend.gate(*arguments), reference.gate(*arguments)
        assert torch.equal(ours.indices_TK, twins.indices_TK)
        assert same(ours.logits_TE, twins.logits_TE, 1e-5)
        assert same(ours.weights_TK, twins.weights_TK, 1e-5)
        assert same(our_partials.sum(0), twin_partials.sum(0), 1e-5)
        if top_k != ALL:
            plan = reference.plan(ours.indices_TK, num_experts)
            assert all(map(torch.equal, backend.plan(ours.indices_TK, num_experts, our_partials), plan))


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_choose_where_logits_tie_or_are_not_finite(top_k, rule):
    logits = normal(9, 5)
    logits[0], logits[1, 3], logits[2] = torch.nan, torch.nan, 1.0
    logits[3, 1], logits[4], logits[5, :2] = torch.inf, -torch.inf, torch.nan
    logits[6] = torch.tensor([0.0, -0.0, -1.0, -0.0, 0.0])
    arguments = logits, None, None, Rule(top_k, *rule)
    (ours, our_partials), (twins, twin_partials) = backend.choose(*arguments), reference.choose(*arguments)
    assert torch.equal(ours.indices_TK, twins.indices_TK)
    torch.testing.assert_close(ours.weights_TK, twins.weights_TK, equal_nan=True)
    assert torch.equal(our_partials.sum(0)[:5], twin_partials.sum(0)[:5])
    assert torch.equal(our_partials.sum(0).isfinite(), twin_partials.sum(0).isfinite())


@pytest.mark.parametrize("num_tokens,num_experts,top_k", [(0, 3, 2), (1, 1, 1), (65, 4, 3), (300, 64, 2)])
def test_plan(num_tokens, num_experts, top_k, monkeypatch):
    """Counted by itself, from another backend's sums, in one launch and in two."""
    indices = torch.randint(-2, num_experts + 1, (num_tokens, top_k), dtype=torch.int32, device=DEVICE)
    _, sums = reference.choose(normal(num_tokens, num_experts), None, None, Rule(top_k, "softmax", True))
    sums[:, :num_experts] = count_slots(indices, num_experts)
    agree("plan", indices, num_experts, tolerance=0)
    agree("plan", indices, num_experts, sums, tolerance=0)
    monkeypatch.setattr(heuristics, "PLAN_SCAN_LIMIT", 0)
    agree("plan", indices, num_experts, tolerance=0)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("num_tokens,num_experts,top_k", [(0, 3, 2), *SHAPES, (300, 5, 2)])
def test_gate_backward(num_tokens, num_experts, top_k, rule):
    """Whatever arrives for a masked token, NaN included, leaves nothing."""
    masked, mlp = rule[1], rule[0] != "softmax" or num_tokens == 300
    mask = (torch.rand(num_tokens) < 0.7).to(DEVICE) if masked else None
    dtype = DTYPES[1] if rule[0] == "sigmoid" else DTYPES[0]
    rows = top_k or num_experts
    layer = router(num_experts, mlp, dtype)
    x, grad_y = normal(num_tokens, HIDDEN, dtype=dtype), normal(num_tokens, HIDDEN, dtype=dtype)
    grad_weights, grad_x = normal(num_tokens * rows, 3), normal(num_tokens * rows, HIDDEN, dtype=dtype)
    if mask is not None:
        x[~mask], grad_y[~mask], grad_weights.view(num_tokens, rows, 3)[~mask] = torch.nan, torch.nan, torch.nan
        grad_x.view(num_tokens, rows, HIDDEN)[~mask] = 0
    tokens, gate, chosen_by = Tokens(x, mask), GateWeights(*layer), Rule(top_k, *rule)
    routing, _ = reference.gate(tokens, gate, chosen_by)
    sums = normal(2 * num_experts + 2) if num_experts != 3 else None
    agree("choose_backward", grad_weights, sums, routing, mask, chosen_by, tolerance=1e-5)
    for rows_and_residual in [(grad_x, grad_y if masked else None), (None, None)]:
        grads = GateGrads(grad_weights, sums, *rows_and_residual)
        agree("gate_backward", grads, tokens, routing, gate, chosen_by, tolerance=3 * TOLERANCE[dtype])
