"""The balance bias of a sigmoid router keeps the precision that its small steps need."""

import copy

import pytest
import torch

import kernels

HALVES = [torch.bfloat16, torch.float16]


def sigmoid_layer(dtype=None, **settings):
    layer = kernels.MoE(4, 6, num_experts=2, top_k=1, router="sigmoid", balance_coef=0.0, **settings)
    return layer if dtype is None else layer.to(dtype)


def test_update_balance_passes_a_half(backend, dtype, device):
    """One expert gets every token, so each step is `rate`, which bf16 loses from 0.5 on."""
    layer = sigmoid_layer(dtype).to(device)
    with torch.no_grad():
        layer.router.weight.copy_(torch.tensor([[50.0] * 4, [-50.0] * 4]))
        layer.router.balance_bias.copy_(torch.tensor([-0.4985, 0.4985]))
    x = torch.ones(3, 4, dtype=dtype, device=device)
    for _ in range(4):
        layer(x)  # 1 - 0.4985 against 0 + 0.4985: the first expert is still the best
        kernels.update_balance(layer, rate=1e-3)
        if layer.router.balance_bias[1] > 0.5:
            break
    assert layer.router.balance_bias.tolist() == pytest.approx([-0.5005, 0.5005], abs=1e-6)
    before = layer.router.balance_bias.clone()
    with kernels.record_routing(layer) as log:
        layer(x)
    assert log[""][0].counts_E.tolist() == [0, 3], "the choice reads the whole bias"
    kernels.update_balance(layer, rate=1e-3)
    assert (layer.router.balance_bias - before).abs().tolist() == pytest.approx([1e-3, 1e-3], abs=1e-6)


CONVERSIONS = {
    "bfloat16()": lambda layer: layer.bfloat16(),
    "half()": lambda layer: layer.half(),
    "to(bfloat16)": lambda layer: layer.to(torch.bfloat16),
    "to(device, float16)": lambda layer: layer.to("cpu", torch.float16),
    "type(bfloat16)": lambda layer: layer.type(torch.bfloat16),
    "inside a model": lambda layer: torch.nn.Sequential(layer).bfloat16()[0],
    "there and back": lambda layer: layer.half().float(),
    "a copy": lambda layer: copy.deepcopy(layer.bfloat16()),
}


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
def test_a_conversion_changes_no_bit_of_the_bias(convert):
    layer = sigmoid_layer()
    layer.router.balance_bias.copy_(torch.tensor([0.123456789, -0.5005]))
    before = layer.router.balance_bias.clone()
    bias = convert(layer).router.balance_bias
    assert bias.dtype == torch.float32
    assert torch.equal(bias, before)


def test_fp64_stays_fp64():
    layer = sigmoid_layer().double()
    assert layer.router.balance_bias.dtype == torch.float64
    layer.load_state_dict({name: t.double() for name, t in layer.state_dict().items()}, assign=True)
    assert layer.router.balance_bias.dtype == torch.float64


def test_a_default_of_16_bits():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert sigmoid_layer().router.balance_bias.dtype == torch.float32
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_of_16_bits(assign, half):
    layer = sigmoid_layer(half)
    state = {name: torch.full_like(tensor, 0.25, dtype=half) for name, tensor in layer.state_dict().items()}
    layer.load_state_dict(state, assign=assign)
    assert layer.router.balance_bias.dtype == torch.float32
    assert layer.router.balance_bias.tolist() == [0.25, 0.25]
    assert "balance_bias" in dict(layer.router.named_buffers())


def test_a_layer_without_memory():
    with torch.device("meta"):
        layer = sigmoid_layer().bfloat16()
    assert layer.router.balance_bias.dtype == torch.float32
    layer.to_empty(device="cpu")
    assert layer.router.balance_bias.dtype == torch.float32
    assert layer.router.balance_bias.device.type == "cpu"
