"""Layers without memory, on the meta device: built, run for their shapes, and given their weights later."""

import pytest
import torch

import kernels

MOE = dict(num_experts=4, top_k=2, router="sigmoid", gate="mlp", noise=True)
LAYERS = [
    pytest.param(kernels.MoE, (8, 16), MOE, id="MoE"),
    pytest.param(kernels.MoE, (8, 16), {**MOE, "top_k": "all", "activation": "swiglu"}, id="all"),
    pytest.param(kernels.SBMoE, (8,), {}, id="SBMoE"),
    pytest.param(kernels.SBMoE, (8,), dict(combine="normalized"), id="normalized"),
]


def step(layer, x):
    torch.manual_seed(1)
    y, aux = layer(x), kernels.aux_loss(layer)
    (y.square().sum() + aux).backward()
    return [y, aux, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("kind,sizes,settings", LAYERS)
def test_device_and_type_are_those_of_every_parameter(kind, sizes, settings):
    layer = kind(*sizes, **settings, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}
    assert {buffer.device.type for buffer in layer.buffers()} <= {"meta"}


@pytest.mark.parametrize("kind,sizes,settings", LAYERS)
def test_skip_init_then_load(kind, sizes, settings):
    reference = kind(*sizes, **settings, dtype=torch.float64)
    layer = torch.nn.utils.skip_init(kind, *sizes, **settings, dtype=torch.float64)
    layer.load_state_dict(reference.state_dict())
    x = torch.randn(5, 8, dtype=torch.float64)
    assert all(torch.equal(a, b) for a, b in zip(step(layer, x), step(reference, x)))


@pytest.mark.parametrize("kind,sizes,settings", LAYERS)
def test_weights_that_are_assigned(kind, sizes, settings, backend):
    reference = kind(*sizes, **settings)
    with torch.device("meta"):
        layer, unused = kind(*sizes, **settings), kind(*sizes, **settings)
    for each in (layer, unused):
        each.load_state_dict(reference.state_dict(), assign=True)
    assert kernels.aux_loss(unused).device.type == "cpu"
    kernels.update_balance(unused)
    x = torch.randn(5, 8)
    assert all(torch.equal(a, b) for a, b in zip(step(layer, x), step(reference, x)))
    kernels.update_balance(layer)
    assert layer.sums.take_counts().device.type == "cpu"


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kind,sizes,settings", LAYERS)
def test_a_forward_gives_shapes_and_counts_nothing(kind, sizes, settings, grad):
    layer = kind(*sizes, **settings, device="meta")
    mask = torch.ones(2, 5, device="meta", dtype=torch.bool)
    with torch.set_grad_enabled(grad), kernels.collect_without_grad():
        y = layer(torch.empty(2, 5, 8, device="meta"), mask)
    assert (y.shape, y.device.type, y.dtype, y.requires_grad) == ((2, 5, 8), "meta", torch.float32, grad)
    layer.to_empty(device="cpu")
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    assert kernels.aux_loss(layer).item() == 0
