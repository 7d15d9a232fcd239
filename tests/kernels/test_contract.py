"""The contract of a backend: every one here keeps it, one that does not is refused, and one can be written from it."""

import inspect
import types

import pytest
import torch

import kernels
from kernels import contract, dispatch, reference
from tests.kernels import toy_backend
from tests.kernels.oracle import relative_error


def parameters_of(function):
    return list(inspect.signature(function).parameters)


def test_every_backend_has_every_primitive_with_the_same_arguments():
    for name in kernels.available_backends():
        backend = dispatch.get(name)
        for primitive in contract.PRIMITIVES:
            expected = parameters_of(getattr(reference, primitive))
            assert parameters_of(getattr(backend, primitive)) == expected, f"{name}.{primitive}"


def test_a_fusion_takes_what_its_fallback_takes():
    eager = dispatch.get("eager")
    assert eager.fusions == frozenset()
    for name in kernels.available_backends():
        backend = dispatch.get(name)
        for fusion in backend.fusions:
            fallback = getattr(eager, fusion)
            if fallback is not None:
                assert parameters_of(getattr(backend, fusion)) == parameters_of(fallback), f"{name}.{fusion}"


def test_a_backend_that_lacks_a_primitive_is_refused_by_name():
    half = types.ModuleType("half")
    half.name, half.supports, half.prefers_bf16 = "half", lambda device, dtype: True, lambda device: False
    for primitive in contract.PRIMITIVES:
        if primitive not in ("combine", "up"):
            setattr(half, primitive, getattr(reference, primitive))
    with pytest.raises(TypeError, match=r"backend half lacks up, combine: see kernels/contract\.py"):
        contract.Backend(half)


@pytest.fixture
def toy(monkeypatch):
    """One line in MODULES, as the page says."""
    monkeypatch.setattr(dispatch, "MODULES", {"toy": "tests.kernels.toy_backend", **dispatch.MODULES})
    monkeypatch.setattr(dispatch, "_loaded", dict(dispatch._loaded))
    toy_backend.calls.clear()
    with kernels.use_backend("toy"):
        yield


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("layer_type,settings", [("MoE", {"top_k": 2}), ("SBMoE", {"noise": False, "top_k": 1})])
def test_a_toy_backend_runs_layers_forward_and_backward(layer_type, settings, activation, toy):
    torch.manual_seed(0)
    sizes = (12, 20) if layer_type == "MoE" else (12,)
    layer = getattr(kernels, layer_type)(*sizes, num_experts=4, activation=activation, **settings)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, mask = torch.randn(9, 12, requires_grad=True), torch.tensor([1, 1, 0, 1, 1, 1, 1, 1, 0]).bool()

    def run():
        layer.zero_grad()
        x.grad = None
        y = layer(x, mask)
        (y.square().sum() + kernels.aux_loss(layer)).backward()
        return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]

    ours = run()
    assert set(toy_backend.calls) == {"up", "down"}
    with kernels.use_backend("eager"):
        expected = run()
    for got, want in zip(ours, expected):
        assert relative_error(got, want) < 1e-5
    with torch.no_grad():
        assert relative_error(layer(x, mask), expected[0]) < 1e-5


def test_the_toy_runs_its_own_type_alone(toy):
    """Another is an error that names it."""
    assert "toy" in kernels.available_backends()
    with pytest.raises(RuntimeError, match=r"backend 'toy' cannot run on cpu tensors in torch\.float64"):
        kernels.MoE(4, 4, num_experts=2, top_k=1).double()(torch.randn(3, 4, dtype=torch.float64))
