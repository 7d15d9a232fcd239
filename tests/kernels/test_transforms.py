"""What traces or transforms a layer either works or raises one clear error, and leaves nothing in the sums."""

import contextlib
import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

import kernels
from tests.kernels.oracle import relative_error

X = torch.randn(3, 5, 8)
UNREACHED = "torch.func and forward-mode differentiation do not reach"


@pytest.fixture
def layer():
    """Whatever a test does with it, the next step is that of a layer that was left alone."""
    torch.manual_seed(0)
    layer = kernels.MoE(8, 12, num_experts=4, top_k=2)
    other = copy.deepcopy(layer)
    yield layer
    steps = []
    for each in (layer.requires_grad_(), other):
        each.zero_grad()
        each(X)
        aux = kernels.aux_loss(each)
        aux.backward()
        steps.append((aux, each.router.weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*steps))


def test_vmap_without_gradients_is_a_loop(layer, backend):
    expected = torch.stack([layer.requires_grad_(False)(x) for x in X])
    kernels.aux_loss(layer)
    assert relative_error(torch.vmap(layer)(X), expected) < 1e-6
    with torch.no_grad(), kernels.collect_without_grad():
        assert relative_error(torch.vmap(layer)(X), expected) < 1e-6


def dual(layer, x):
    with forward_ad.dual_level():
        return layer(forward_ad.make_dual(x, x))


def grad_of_weights(layer, x):
    def loss(parameters):
        return torch.func.functional_call(layer, parameters, (x,)).sum()

    return torch.func.grad(loss)(dict(layer.named_parameters()))


TRANSFORMS = {
    "vmap": lambda layer, x: torch.vmap(layer)(x),
    "grad": lambda layer, x: torch.func.grad(lambda x: layer(x).sum())(x),
    "grad of weights": grad_of_weights,
    "jvp": lambda layer, x: torch.func.jvp(layer, (x,), (x,)),
    "jacrev": lambda layer, x: torch.func.jacrev(layer)(x),
    "dual": dual,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_cannot_be_differentiated_says_so(name, layer, backend):
    with pytest.raises(RuntimeError, match=UNREACHED):
        TRANSFORMS[name](layer, X)


@pytest.mark.parametrize("name", ["jvp", "dual"])
def test_a_tangent_is_not_lost_in_silence(name, layer):
    with torch.no_grad(), pytest.raises(RuntimeError, match=UNREACHED):
        TRANSFORMS[name](layer, X)


def test_functions_say_it_too(backend):
    experts = [torch.randn(4, 12, 8), None, torch.randn(4, 8, 12), None]
    routing = kernels.route(torch.randn(5, 4), 2)
    functions = [
        lambda x: kernels.moe(x, torch.randn(4, 8), *experts, top_k=2),
        lambda x: kernels.expert_mlp(x, routing.indices_TK, routing.weights_TK, *experts),
        lambda x: kernels.route(x, 2).weights_TK,
    ]
    for function in functions:
        with pytest.raises(RuntimeError, match=UNREACHED):
            torch.func.grad(lambda x, f=function: f(x).sum())(X[0])


def test_where_no_tangent_arrives_a_forward_is_one_like_any_other(layer):
    with forward_ad.dual_level():
        y = layer(X)
    assert torch.equal(y, layer(X))
    assert kernels.router_totals(layer)[0][-1] == 2 * 15


def test_functional_call_has_the_gradients_of_its_own_parameters(layer, backend):
    weights = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
    results = []
    for run in (lambda: torch.func.functional_call(layer, weights, (X,)), lambda: layer(X)):
        results.append(run())
        (results[-1].square().sum() + kernels.aux_loss(layer)).backward()
    assert torch.equal(*results)
    assert all(torch.equal(weights[name].grad, p.grad) for name, p in layer.named_parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trace_runs_on_any_number_of_tokens(layer, backend):
    with torch.no_grad(), kernels.collect_without_grad():
        traced = torch.jit.trace(layer, (X[0],))
        x = torch.randn(9, 8)
        expected = layer(x)
        kernels.router_totals(layer)
        assert torch.equal(traced(x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trace_has_no_gradient_and_says_so(layer):
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace records no gradient.*torch\.no_grad\(\)"):
        torch.jit.trace(layer, (X[0],))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_an_export_computes_the_same(strict, grad, layer):
    with torch.set_grad_enabled(grad):
        program = torch.export.export(layer, (X,), strict=strict)
        expected = layer(X)
    kernels.aux_loss(layer)
    assert torch.equal(program.module()(X), expected)


@pytest.mark.parametrize("grad", [True, False])
def test_fake_tensors_give_shapes(grad, layer):
    collects = contextlib.nullcontext() if grad else kernels.collect_without_grad()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.set_grad_enabled(grad), collects:
        assert layer(torch.empty(7, 8)).shape == (7, 8)
