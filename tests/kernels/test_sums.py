"""What the router's statistics keep alive, and what they do with forwards whose graph is gone."""

import functools
import warnings
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import kernels
from tests.kernels.oracle import relative_error

SIZES = dict(num_experts=4, top_k=1)


class Token:
    """Lives as long as the graph that it is tied to."""


def run_and_drop(layer, backward=False):
    """A forward whose output is dropped -> a weak reference to its graph."""
    hidden, token = torch.randn(5, 8, requires_grad=True) * 2, Token()
    hidden.grad_fn.register_hook(functools.partial(lambda token, *grads: None, token))
    y = layer(hidden)
    if backward:
        y.sum().backward()
    return weakref.ref(token)


def test_without_coefficients_no_graph_is_kept_and_tokens_still_count():
    layer = kernels.MoE(8, 8, **SIZES, router="sigmoid", balance_coef=0.0)
    graphs = [run_and_drop(layer) for _ in range(4)]
    assert [graph() for graph in graphs] == [None] * 4
    assert layer.sums.take_counts().sum() == 4 * 5


def test_a_coefficient_may_come_later():
    layer, reference = (kernels.MoE(8, 8, **SIZES, balance_coef=0.0) for _ in range(2))
    reference.load_state_dict(layer.state_dict())
    layer(torch.randn(5, 8))
    layer.balance_coef = reference.balance_coef = 0.1
    assert (layer.balance_coef, layer.z_coef) == (0.1, 0.0)
    kernels.aux_loss(layer)
    x = torch.randn(5, 8)
    losses = []
    for each in (layer, reference):
        each(x)
        losses.append(kernels.aux_loss(each))
        losses[-1].backward()
    assert losses[0].item() == losses[1].item() > 0
    assert torch.equal(layer.router.weight.grad, reference.router.weight.grad)
    layer.balance_coef = 0
    assert run_and_drop(layer)() is None


@pytest.mark.parametrize("end", [kernels.aux_loss, kernels.router_totals, kernels.update_balance])
def test_the_graph_lives_until_the_sums_are_taken(end):
    layer = kernels.MoE(8, 8, **SIZES, router="sigmoid")
    graph = run_and_drop(layer)
    assert graph() is not None
    end(layer)
    assert graph() is None


def test_what_a_backward_has_freed_lives_until_the_next_forward():
    layer = kernels.MoE(8, 8, **SIZES)
    graphs = [run_and_drop(layer, backward=True) for _ in range(4)]
    assert [graph() for graph in graphs[:-1]] == [None] * 3
    assert kernels.router_totals(layer)[0][:4].sum() == 4 * 5


def test_accumulation_and_chunks_are_no_forgotten_forwards(monkeypatch):
    monkeypatch.setattr("kernels.sums.FORWARDS_BEFORE_WARNING", 3)
    layer, x = kernels.MoE(8, 8, **SIZES), torch.randn(5, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            layer(x).sum().backward()
        with torch.no_grad(), kernels.collect_without_grad():
            for _ in range(5):
                layer(x)
        totals = kernels.router_totals(layer)
        for _ in range(5):
            (layer(x).sum() + kernels.aux_loss(layer, totals=totals)).backward()


def expected_loss(weight, batches, differentiated, coefficient):
    """Switch's loss over all batches, top-1; those that are not differentiated are constants."""
    probs = [(x @ weight.T).softmax(-1) for x in batches]
    probs = torch.cat([p if live else p.detach() for p, live in zip(probs, differentiated)])
    share = torch.bincount(probs.argmax(-1), minlength=len(weight)) / len(probs)
    return coefficient * len(weight) * (share * probs.mean(0)).sum()


def backward_alone(y, x):
    y.square().sum().backward()


def backward_and_retain(y, x):
    y.square().sum().backward(retain_graph=True)


def backward_with_a_graph(y, x):
    with warnings.catch_warnings():  # of a cycle, which `backward` would make and this does not
        warnings.simplefilter("ignore")
        torch.autograd.grad(y.square().sum(), x, create_graph=True)


RUNS = {
    "plain": lambda layer: layer,
    "checkpointed": lambda layer: functools.partial(checkpoint, layer, use_reentrant=False),
    "compiled": lambda layer: torch.compile(layer, backend="aot_eager", fullgraph=True),
}


ENDS = [
    ("plain", backward_alone, False),
    ("plain", backward_and_retain, True),
    ("plain", backward_with_a_graph, True),
    ("checkpointed", backward_alone, False),
    ("checkpointed", backward_and_retain, True),
    ("compiled", backward_alone, False),
]
"""With whether the graph is there afterwards. Of compiled functions torch keeps none."""


@pytest.mark.filterwarnings("ignore:kernels.aux_loss")
@pytest.mark.parametrize("run,end,kept", ENDS)
def test_a_step_without_the_loss(run, end, kept, backend):
    """Its tokens count in the next loss, which has a gradient with respect to them if their graph is there."""
    layer = kernels.MoE(8, 8, **SIZES, balance_coef=0.5)
    forward, batches = RUNS[run](layer), [torch.randn(n, 8, requires_grad=True) for n in (5, 9, 7)]
    end(forward(batches[0]), batches[0])
    forward(batches[1])
    y = forward(batches[2])
    layer.zero_grad()
    aux = kernels.aux_loss(layer)
    (aux + 0 * y.sum()).backward()

    weight = layer.router.weight.detach().double().requires_grad_()
    expected = expected_loss(weight, [x.detach().double() for x in batches], (kept, True, True), 0.5)
    expected.backward()
    assert relative_error(aux, expected) < 1e-6
    assert relative_error(layer.router.weight.grad, weight.grad) < 1e-5


def test_a_loss_that_comes_late_has_its_value_and_says_that_it_has_no_gradient():
    layer, x = kernels.MoE(8, 8, **SIZES, balance_coef=0.5), torch.randn(5, 8)
    layer(x)
    expected = kernels.aux_loss(layer).item()
    layer(x).sum().backward()
    with pytest.warns(UserWarning, match=r"aux_loss\(model\) was called after the backward"):
        assert kernels.aux_loss(layer).item() == pytest.approx(expected)
    layer(x).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernels.aux_loss(layer)


def test_a_loss_for_each_part_of_an_accumulated_step():
    """One for each backward: their sum has the gradient of the losses, each taken alone."""
    layer = kernels.MoE(8, 8, **SIZES, balance_coef=0.5)
    batches = [torch.randn(n, 8) for n in (5, 9)]
    weight = layer.router.weight.detach().double().requires_grad_()
    for x in batches:
        (0 * layer(x).sum() + kernels.aux_loss(layer)).backward()
        expected_loss(weight, [x.double()], (True,), 0.5).backward()
    assert relative_error(layer.router.weight.grad, weight.grad) < 1e-5


def test_forwards_that_are_never_sent_back_do_not_keep_those_that_were():
    """A metric with gradients after each backward, say: the newest forward alone tells nothing of the others."""
    layer, x = kernels.MoE(8, 12, **SIZES), torch.randn(3, 8)
    for _ in range(40):
        layer(x).sum().backward()
        layer(x)
    assert layer.sums.kept <= 64
    assert layer.sums.take_counts().sum().item() == 80 * 3


def test_what_is_counted_outlives_a_move_of_the_weights(device):
    """Offloaded weights, and replicas on several devices: the sums stay where they began."""
    layer, x = kernels.MoE(8, 12, **SIZES).to(device), torch.randn(3, 8, device=device)
    layer(x)
    weight = layer.router.weight
    layer.router.weight = torch.nn.Parameter(weight.detach().to("meta"))
    aux = kernels.aux_loss(layer)
    assert aux.device.type == torch.device(device).type
    assert torch.autograd.grad(aux, weight)[0].norm() > 0
