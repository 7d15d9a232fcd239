"""Parameters and inputs in any layout: transposed, sliced out of a larger stack, expanded, every second number."""

import pytest
import torch
from torch import nn

import kernels
from kernels.encoder import residual_norm
from tests.kernels.oracle import relative_error

pytestmark = pytest.mark.slow_in_the_interpreter

HOLE = float("nan")
"""What lies between the numbers."""

LAYERS = {
    "moe": lambda: kernels.MoE(12, 20, num_experts=4, top_k=2, gate="mlp"),
    "moe linear": lambda: kernels.MoE(12, 20, num_experts=4, top_k=1, activation="geglu"),
    "moe all": lambda: kernels.MoE(12, 20, num_experts=4, top_k="all"),
    "sbmoe": lambda: kernels.SBMoE(12, num_experts=4, noise=False),
}

LAYOUTS = {
    "transposed": lambda t: t.mT.contiguous().mT if t.ndim > 1 else every_second(t),
    "every second": lambda t: every_second(t),
    "a slice of rows": lambda t: torch.cat([torch.full_like(t, HOLE if t.is_floating_point() else 0), t], -1)[
        ..., t.shape[-1] :
    ],
}


def every_second(t):
    padded = torch.stack([t, torch.full_like(t, HOLE if t.is_floating_point() else 0)], -1).flatten(-2)
    return padded[..., ::2]


def run(layer, x):
    """Output and gradients, with and without autograd."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    y = layer(x)
    (y.square().sum() + kernels.aux_loss(layer)).backward()
    with torch.no_grad():
        without = layer(x)
    return [y.detach(), without, x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_parameters_lie_in_any_way(name, layout, backend, device):
    torch.manual_seed(0)
    layer = LAYERS[name]().to(device)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(9, 12, device=device)
    expected = run(layer, x)
    for parameter in layer.parameters():
        values = parameter.data.clone()
        parameter.data = LAYOUTS[layout](parameter.data)
        assert torch.equal(parameter.data, values)
        assert parameter.ndim == 1 or not parameter.is_contiguous()
    for got, want in zip(run(layer, x), expected):
        assert torch.equal(got, want)


def test_a_pruned_and_an_expanded_stack(backend, device):
    """Experts [::2] of eight, and one expert as all of them: reading on would leave the memory."""
    torch.manual_seed(0)
    large = kernels.MoE(12, 20, num_experts=8, top_k=2).to(device)
    x = torch.randn(9, 12, device=device)
    for take in (lambda t: t[::2], lambda t: t[:1].expand(4, *t.shape[1:])):
        pruned = kernels.MoE(12, 20, num_experts=4, top_k=2).to(device)
        exact = kernels.MoE(12, 20, num_experts=4, top_k=2).to(device)
        for ours, dense, source in zip(pruned.parameters(), exact.parameters(), large.parameters()):
            ours.data, dense.data = take(source.data), take(source.data).clone()
        with torch.no_grad():
            assert torch.equal(pruned(x), exact(x))
        results = [torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())) for layer in (pruned, exact)]
        assert all(map(torch.equal, *results))


def test_assigned_weights(backend, device):
    torch.manual_seed(0)
    layer, other = (kernels.MoE(12, 20, num_experts=4, top_k=2).to(device) for _ in range(2))
    state = {name: LAYOUTS["transposed"](t) for name, t in other.state_dict().items()}
    layer.load_state_dict(state, assign=True)
    x = torch.randn(9, 12, device=device)
    for got, want in zip(run(layer, x), run(other, x)):
        assert torch.equal(got, want)


def test_under_autocast_and_compiled():
    torch.manual_seed(0)
    layer = kernels.MoE(12, 20, num_experts=4, top_k=2)
    x = torch.randn(9, 12)
    compiled = torch.compile(layer, fullgraph=True)

    def results():
        with torch.autocast("cpu", torch.bfloat16):
            return [layer(x), compiled(x)]

    expected = results()
    for parameter in layer.parameters():
        parameter.data = LAYOUTS["transposed"](parameter.data)
    for got, want in zip(results(), expected):
        assert torch.equal(got, want)


def test_functions_take_any_layout(backend, device):
    torch.manual_seed(0)
    shapes = dict(up_weight=(4, 20, 12), up_bias=(4, 20), down_weight=(4, 12, 20), down_bias=(4, 12))
    dense = {name: torch.randn(shape, device=device) for name, shape in shapes.items()}
    router, x = torch.randn(4, 12, device=device), torch.randn(9, 12, device=device)
    indices, weights = torch.randint(4, (9, 2), device=device), torch.rand(9, 2, device=device)
    moved = {name: LAYOUTS["transposed"](t).requires_grad_() for name, t in dense.items()}
    dense = {name: t.requires_grad_() for name, t in dense.items()}
    for x_moved, router_moved in ((x, router), (LAYOUTS["transposed"](x), LAYOUTS["transposed"](router))):
        assert torch.equal(
            kernels.moe(x_moved, router_moved, **moved, top_k=2), kernels.moe(x, router, **dense, top_k=2)
        )
        assert (
            relative_error(
                kernels.expert_mlp(
                    x_moved, LAYOUTS["every second"](indices), LAYOUTS["every second"](weights), **moved
                ),
                kernels.expert_mlp(x, indices, weights, **dense),
            )
            == 0
        )


def test_compiled_forward_and_backward():
    """What an op returns lies otherwise than its input: its fake must say so."""
    torch.manual_seed(0)
    shapes = [(4, 20, 12), (4, 20), (4, 12, 20), (4, 12)]
    stacks = [LAYOUTS["transposed"](torch.randn(shape)).requires_grad_() for shape in shapes]
    router, x = torch.randn(4, 12), LAYOUTS["transposed"](torch.randn(9, 12)).requires_grad_()
    weight, bias = torch.randn(2, 12).requires_grad_().unbind()

    def run(x, router, *stacks):
        y = kernels.moe(x, router, *stacks, top_k=2)
        return residual_norm(x, y, weight, bias, 1e-5).square().sum()

    expected = torch.autograd.grad(run(x, router, *stacks), [x, *stacks])
    got = torch.autograd.grad(torch.compile(run, fullgraph=True)(x, router, *stacks), [x, *stacks])
    for ours, theirs in zip(got, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
