"""Properties of the layers over random settings and shapes."""

import pytest
import torch

pytest.importorskip("hypothesis", reason="the fixed grid of test_layers.py covers every setting without it")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kernels
from tests.kernels.cases import Case, check
from tests.kernels.oracle import relative_error

pytestmark = pytest.mark.slow_in_the_interpreter

EXAMPLES = {"eager": 60, "native": 60, "triton": 60 if torch.cuda.is_available() else 12}
"""In Triton's interpreter an example takes a second."""


@st.composite
def cases(draw):
    experts = draw(st.integers(1, 9))
    return Case(
        layer=draw(st.sampled_from(["MoE", "SBMoE"])),
        tokens=draw(st.integers(0, 40)),
        hidden=draw(st.integers(1, 40)),
        ffn=draw(st.integers(1, 40)),
        experts=experts,
        top_k=draw(st.one_of(st.integers(1, experts), st.just("all"))),
        activation=draw(st.sampled_from(["gelu", "gelu_tanh", "relu", "silu", "swiglu", "geglu"])),
        router=draw(st.sampled_from(["softmax", "topk_softmax", "sigmoid"])),
        renormalize=draw(st.booleans()),
        gate=draw(st.sampled_from(["linear", "mlp"])),
        noise=draw(st.booleans()),
        bias=draw(st.booleans()),
        masked=draw(st.booleans()),
        crowded=draw(st.booleans()),
        seed=draw(st.integers(0, 10_000)),
    )


def over_cases(test):
    """Runs `test(case, device)` on as many random cases as the backend has time for."""

    def run(backend, device):
        limits = settings(
            max_examples=EXAMPLES[backend],
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        limits(given(cases())(lambda case: test(case, device)))()

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@over_cases
def test_oracle(case, device):
    check(case, device, torch.float32)


@over_cases
def test_permuting_experts_changes_nothing(case, device):
    layer = case.build(device, torch.float32).eval()
    x, _, mask = case.inputs(device, torch.float32)
    y = layer(x, mask)
    order = torch.randperm(case.experts, device=device)
    with torch.no_grad():
        for parameter in [layer.router.weight, layer.router.bias, layer.router.balance_bias]:
            if parameter is not None:
                parameter.copy_(parameter[order])
        for parameter in layer.experts.parameters():
            parameter.copy_(parameter[order])
    assert relative_error(layer(x, mask), y) < 1e-5


@over_cases
def test_permuting_tokens_permutes(case, device):
    layer = case.build(device, torch.float32).eval()
    x, _, mask = case.inputs(device, torch.float32)
    order = torch.randperm(case.tokens, device=device)
    y = layer(x, mask)
    assert relative_error(layer(x[order], None if mask is None else mask[order]), y[order]) < 1e-5


@over_cases
def test_masked_tokens_leave_no_trace(case, device):
    """A batch with masked NaN tokens does to the others, to the gradients and the losses what the others alone do."""
    layer = case.build(device, torch.float32).eval()
    x = torch.randn(case.tokens, case.hidden, device=device)
    mask = torch.rand(case.tokens, device=device) < 0.5
    dirty = torch.where(mask[:, None], x, float("nan"))
    results = []
    for tokens, keep in ((dirty, mask), (x[mask], None)):
        layer.zero_grad()
        y = layer(tokens, keep)
        aux = kernels.aux_loss(layer)
        (torch.where(mask[:, None], y, 0) if keep is not None else y).square().sum().add(aux).backward()
        results.append(
            [y if keep is None else y[mask], aux, *(p.grad for p in layer.parameters() if p.grad is not None)]
        )
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(*results))


@over_cases
def test_every_expert_by_routing_equals_all(case, device):
    """top_k = E with renormalisation is "all"."""
    if case.router == "softmax":
        case = Case(**{**case.__dict__, "renormalize": True})
    results = []
    for top_k in (case.experts, "all"):
        layer = Case(**{**case.__dict__, "top_k": top_k}).build(device, torch.float32).eval()
        x, grad_y, mask = case.inputs(device, torch.float32)
        x.requires_grad_()
        y = layer(x, mask)
        torch.autograd.backward(y, grad_y)
        results.append([y, x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)])
    errors = [relative_error(a, b) for a, b in zip(*results)]
    floor = [b.double().norm().item() for b in results[1]]  # a gradient that cancels to nothing has no direction
    assert all(error < 2e-5 or size < 1e-5 for error, size in zip(errors, floor)), errors
