"""The router's losses: what counts, what does not, and that the whole is the same as the sum of its parts."""

import copy
import warnings

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import kernels
from kernels import losses
from tests.kernels.cases import Case
from tests.kernels.oracle import relative_error


def gradients(layer, aux):
    layer.zero_grad()
    aux.backward()
    return [p.grad.clone() for p in layer.router.parameters() if p.grad is not None]


def test_balanced_routing_costs_its_coefficient():
    layer = kernels.MoE(4, 4, num_experts=4, top_k=1, balance_coef=0.5)
    with torch.no_grad():
        layer.router.weight.copy_(torch.eye(4))
    layer(torch.eye(4).repeat(5, 1))
    assert kernels.aux_loss(layer).item() == pytest.approx(0.5)


def test_two_forwards_are_one_batch(backend, device):
    """A bi-encoder runs twice a step."""
    layer = Case(experts=5).build(device, torch.float32)
    queries, documents = torch.randn(9, 12, device=device), torch.randn(20, 12, device=device)
    layer(queries)
    layer(documents)
    twice = kernels.aux_loss(layer)
    in_two = gradients(layer, twice)
    layer(torch.cat([queries, documents]))
    once = kernels.aux_loss(layer)
    assert relative_error(twice, once) < 1e-6
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(in_two, gradients(layer, once)))
    separately = []
    for x in (queries, documents):
        layer(x)
        separately.append(kernels.aux_loss(layer).item())
    assert sum(separately) / 2 != pytest.approx(once.item(), rel=1e-4), "a mean of losses is another loss"


def test_taking_the_loss_clears_and_inference_does_not_count():
    layer = Case().build("cpu", torch.float32)
    with torch.no_grad():
        layer(torch.randn(9, 12))
    assert kernels.aux_loss(layer).item() == 0
    layer(torch.randn(9, 12))
    assert kernels.aux_loss(layer).item() > 0
    assert kernels.aux_loss(layer).item() == 0
    assert kernels.aux_loss(torch.nn.Linear(2, 2)).item() == 0


def test_gradcache_chunks_give_the_loss_and_gradient_of_the_big_batch():
    layer = Case(experts=5).build("cpu", torch.float64)
    x = torch.randn(31, 12, dtype=torch.float64)
    layer(x)
    whole = kernels.aux_loss(layer)
    expected = gradients(layer, whole)
    for size in (1, 7, 31):
        chunks = x.split(size)
        with torch.no_grad(), kernels.collect_without_grad():
            for chunk in chunks:
                layer(chunk)
        totals = kernels.router_totals(layer)
        layer.zero_grad()
        for chunk in chunks:
            layer(chunk)
            aux = kernels.aux_loss(layer, totals=totals)
            assert relative_error(aux, whole) < 1e-12
            aux.backward()
        got = [p.grad for p in layer.router.parameters()]
        assert all(relative_error(a, b) < 1e-12 for a, b in zip(got, expected))


@pytest.mark.parametrize("top_k", [2, "all"])
def test_checkpointing_counts_once_and_changes_no_bit(top_k, backend, device):
    layer = Case(top_k=top_k, noise=True).build(device, torch.float32)
    x = torch.randn(9, 12, device=device, requires_grad=True)
    results = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        layer.zero_grad()
        x.grad = None
        torch.manual_seed(0)
        y = run(x)
        aux = kernels.aux_loss(layer)
        (y.square().sum() + aux).backward()
        results.append([y, aux, x.grad, *(p.grad for p in layer.parameters())])
        assert kernels.aux_loss(layer).item() == 0, "the recomputation added to the sums"
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_checkpointing_with_the_losses_alone():
    """Nothing sends back a gradient for y."""
    layer = Case().build("cpu", torch.float32)
    x = torch.randn(9, 12, requires_grad=True)
    layer(x)
    expected = gradients(layer, kernels.aux_loss(layer))
    checkpoint(layer, x, use_reentrant=False)
    assert all(torch.equal(a, b) for a, b in zip(gradients(layer, kernels.aux_loss(layer)), expected))


def test_reentrant_checkpointing_raises():
    layer = Case().build("cpu", torch.float32)
    x = torch.randn(9, 12, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = checkpoint(layer, x, use_reentrant=True)
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            y.sum().backward()


def test_update_balance_evens_the_load():
    torch.manual_seed(0)
    layer = kernels.MoE(16, 8, num_experts=8, top_k=2, router="sigmoid", balance_coef=0.0)
    x = torch.randn(4096, 16) + 0.5
    weight = layer.router.weight.clone()

    def largest_share():
        with torch.no_grad(), kernels.record_routing(layer) as log:
            layer(x)
        return log[""][0].counts_E.max().item() / (2 * len(x) / 8)

    before = largest_share()
    for _ in range(200):
        layer(x).sum().backward()
        kernels.update_balance(layer, rate=1e-2)
    assert before > 1.3
    assert largest_share() < 1.1
    assert torch.equal(layer.router.weight, weight)
    layer(x)
    kernels.aux_loss(layer)
    counts = layer.sums.take_counts()
    assert counts.sum().item() == 2 * len(x), "aux_loss leaves the counts to update_balance"


def test_statistics_follow_moves_and_stay_out_of_copies_and_files():
    layer = Case().build("cpu", torch.float32)
    layer(torch.randn(9, 12))
    assert "total" not in "".join(layer.state_dict())
    assert kernels.aux_loss(copy.deepcopy(layer)).item() == 0
    layer.double()
    assert layer.sums.settled_L.dtype == torch.float64
    layer.to("meta")
    assert layer.sums.settled_L.device.type == "meta"


def test_a_forgotten_loss_warns_once(monkeypatch):
    monkeypatch.setattr("kernels.sums.FORWARDS_BEFORE_WARNING", 3)
    layer = kernels.MoE(4, 4, num_experts=2, top_k=1)
    silent = kernels.MoE(4, 4, num_experts=2, top_k=1, balance_coef=0.0)
    x = torch.randn(2, 4)
    layer(x)
    layer(x)
    with pytest.warns(UserWarning, match=r"kernels\.aux_loss"):
        layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            layer(x)
            silent(x)


def test_the_layers_of_a_model_by_name():
    model = torch.nn.ModuleDict(
        {"a": kernels.SBMoE(4), "b": torch.nn.Sequential(kernels.MoE(4, 4, num_experts=2, top_k=1))}
    )
    assert list(losses.moe_layers(model)) == ["a", "b.0"]


def test_a_selection_bias_may_change_before_the_backward(backend, device):
    """As `update_balance` or the broadcast of buffers changes it: the backward does not read it."""
    layer = kernels.MoE(8, 12, num_experts=4, top_k=2, router="sigmoid").to(device)
    x = torch.randn(9, 8, device=device, requires_grad=True)
    y = layer(x)
    kernels.update_balance(layer)
    layer.router.balance_bias.copy_(torch.randn(4, device=device))
    y.sum().backward()
    assert x.grad.isfinite().all()
