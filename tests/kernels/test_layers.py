"""MoE and SBMoE on every backend: against the oracle, on any shape, and with inputs that nobody wishes for."""

import pytest
import torch

import kernels
from tests.kernels.cases import GRID, Case, check
from tests.kernels.oracle import TOLERANCE, relative_error


@pytest.mark.parametrize("case", GRID, ids=str)
def test_against_the_oracle(case, backend, dtype, device):
    check(case, device, dtype)


@pytest.mark.parametrize("top_k", [1, 2, "all"])
def test_any_leading_shape_and_layout(top_k, backend, device):
    layer = Case(top_k=top_k).build(device, torch.float32)
    x = torch.randn(3, 4, 5, 12, device=device)
    y = layer(x)
    assert y.shape == x.shape
    flat = layer(x.reshape(-1, 12))
    assert torch.equal(y.reshape(-1, 12), flat)
    assert relative_error(layer(x.transpose(0, 2)), y.transpose(0, 2)) < 1e-6
    strided = torch.randn(12, 60, device=device).T
    assert not strided.is_contiguous()
    assert torch.equal(layer(strided), layer(strided.contiguous()))
    assert layer(x[0, 0, 0]).shape == (12,)
    mask = torch.ones(3, 4, 5, dtype=torch.int64, device=device)
    assert torch.equal(layer(x, mask), y)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_two_runs_give_the_same_bits(backend, device, three_threads):
    """As users run it: PyTorch is not told to be deterministic."""
    torch.use_deterministic_algorithms(False)
    case = Case(tokens=97 if backend == "triton" else 1500, experts=7, top_k=3, masked=True)
    layer = case.build(device, torch.float32)
    x, grad_y, mask = case.inputs(device, torch.float32)
    results = []
    for _ in range(2):
        layer.zero_grad()
        x_leaf = x.clone().requires_grad_()
        y = layer(x_leaf, mask)
        torch.autograd.backward([y, kernels.aux_loss(layer)], [grad_y, torch.ones((), device=device)])
        results.append([y, x_leaf.grad, *(p.grad for p in layer.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("router", ["softmax", "topk_softmax", "sigmoid"])
@pytest.mark.parametrize("top_k", [1, 2, "all"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_comes_out_as_nan(router, top_k, poison, backend, device):
    layer = Case(top_k=top_k, router=router, activation="relu").build(device, torch.float32)
    x = torch.randn(6, 12, device=device)
    clean = layer(x)
    x[2, 5] = poison
    with kernels.record_routing(layer) as log:
        y = layer(x)
    assert y[2].isnan().all()
    others = torch.arange(6, device=device) != 2
    assert relative_error(y[others], clean[others]) < 1e-6
    indices = log[""][0].indices_TK
    assert ((indices >= 0) & (indices < 4)).all()
    assert all(len(set(row)) == len(row) for row in indices.tolist())


def test_a_starved_expert_has_zero_gradients_not_none(backend, device):
    layer = Case(experts=6, top_k=1, tokens=3).build(device, torch.float32)
    with kernels.record_routing(layer) as log:
        layer(torch.randn(3, 12, device=device)).sum().backward()
    starved = (log[""][0].counts_E == 0).nonzero().flatten()
    assert len(starved) >= 3
    for parameter in layer.experts.parameters():
        assert torch.equal(parameter.grad[starved], torch.zeros_like(parameter.grad[starved]))


def test_frozen_parts_get_no_gradient_and_change_nothing(backend, device):
    x = torch.randn(9, 12, device=device)
    reference, frozen = (Case().build(device, torch.float32) for _ in range(2))
    frozen.experts.requires_grad_(False)
    for layer in (reference, frozen):
        layer(x).sum().backward()
    assert all(p.grad is None for p in frozen.experts.parameters())
    assert torch.equal(frozen.router.weight.grad, reference.router.weight.grad)


@pytest.mark.parametrize("layer_type", ["MoE", "SBMoE"])
@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
def test_autocast(layer_type, amp, backend, device):
    """The experts run in the autocast type, the gate in fp32; gradients come back in each input's type."""
    from kernels import dispatch

    if not dispatch.get(backend).supports(device, amp):
        pytest.skip(f"{backend} does not compute in {amp} here")
    layer = Case(layer=layer_type, tokens=40).build(device, torch.float32)
    x = torch.randn(40, 12, device=device, requires_grad=True)
    with kernels.record_routing(layer) as log, torch.autocast(device.type, dtype=amp):
        y = layer(x)
    plain_y = layer(x)
    with torch.no_grad():
        logits = x @ layer.router.weight.T
    assert y.dtype == torch.float32
    assert relative_error(log[""][0].logits_TE, logits) < 1e-6
    assert 1e-6 < relative_error(y, plain_y) <= TOLERANCE[amp]
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in [x, *layer.parameters()])


def test_sbmoe_starts_as_the_identity(backend, device):
    block = kernels.SBMoE(16).to(device)
    x = torch.randn(5, 16, device=device)
    assert torch.equal(block(x), x)


def test_sbmoe_normalized(backend, device):
    block = kernels.SBMoE(16, combine="normalized", top_k=2, noise=False).to(device)
    x = torch.randn(5, 16, device=device)
    mask = torch.tensor([1, 1, 0, 1, 0], device=device)
    y = block(x, mask)
    steps = (y - x)[mask.bool()].norm(dim=-1)
    assert torch.allclose(steps, torch.ones_like(steps), atol=1e-5)
    assert torch.equal(y[~mask.bool()], torch.zeros(2, 16, device=device))
    assert not torch.equal(block.experts.down_weight, torch.zeros_like(block.experts.down_weight))


def test_normalized_top_1_leaves_the_gate_no_gradient(device):
    """But for rounding, in proportion to what the weights are multiplied with."""
    block = kernels.SBMoE(16, combine="normalized", noise=False).to(device)
    loss = block(torch.randn(5, 16, device=device)).square().sum()
    loss.backward()
    assert block.router.weight.grad.norm() < 1e-6 * loss


def test_parameters_are_stacks_under_the_promised_names():
    layer = kernels.SBMoE(8, 6, num_experts=3, activation="swiglu")
    shapes = {name: tuple(parameter.shape) for name, parameter in layer.state_dict().items()}
    assert shapes == {
        "router.weight": (3, 4),
        "router.bias": (3,),
        "router.hidden.weight": (4, 8),
        "router.hidden.bias": (4,),
        "router.noise.weight": (3, 8),
        "router.noise.bias": (3,),
        "experts.up_weight": (3, 12, 8),
        "experts.up_bias": (3, 12),
        "experts.down_weight": (3, 8, 6),
        "experts.down_bias": (3, 8),
    }
    plain = kernels.MoE(8, 6, num_experts=3, top_k=1, bias=False)
    assert sorted(plain.state_dict()) == ["experts.down_weight", "experts.up_weight", "router.weight"]


def test_noise_only_in_training(device):
    block = kernels.SBMoE(16, combine="normalized", top_k="all").to(device)
    x = torch.randn(5, 16, device=device)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_a_parametrised_weight_is_computed():
    """What parametrisation leaves in the place of a parameter is an attribute."""
    layer, x = kernels.MoE(8, 6, num_experts=3, top_k=2), torch.randn(5, 8)
    expected = layer(x)
    torch.nn.utils.parametrize.register_parametrization(layer.experts, "down_weight", Doubled())
    assert relative_error(layer(x) - expected * 2, -mix_of_biases(layer, x)) < 1e-5


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def mix_of_biases(layer, x):
    """What the down biases add to the output: they are not doubled."""
    with kernels.record_routing(layer) as log:
        layer(x)
    routing = log[""][0]
    return (routing.weights_TK[..., None] * layer.experts.down_bias[routing.indices_TK.long()]).sum(1)
