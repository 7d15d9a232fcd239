"""The choice of a router where sigmoids have rounded to 0 or 1: its order, its weights and their gradients."""

import pytest
import torch

from kernels import dispatch
from kernels.records import Rule
from kernels.routing import ALL

LOW, HIGH = (-200.0, -100.0), (100.0, 200.0)


def spread(tokens, low, high):
    return torch.empty(tokens, 5).uniform_(low, high)


def extreme_logits():
    """Far below, far above, at the edge of fp32's range, all of it, all alike."""
    torch.manual_seed(0)
    ranges = [LOW, HIGH, (-60.0, -40.0), (-110.0, -80.0), (-200.0, 200.0), (-1.0, 1.0)]
    return torch.cat([*(spread(4, *ends) for ends in ranges), torch.full((1, 5), -200.0), torch.full((1, 5), 200.0)])


def sigmoid(logits):
    return 1 / (1 + torch.exp(-logits))


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("top_k", [1, 3, ALL])
def test_sigmoids_of_any_size(top_k, renormalize, backend, device):
    """In fp64 the definition underflows nowhere: a sigmoid, over the sum of those that are chosen, or of all."""
    module, logits = dispatch.get(backend), extreme_logits()
    rule = Rule(top_k, "sigmoid", renormalize)
    routing, partials = module.choose(logits.to(device), None, None, rule)
    wide = logits.double().requires_grad_()
    scores, indices = sigmoid(wide), routing.indices_TK.cpu().long()
    chosen = scores if top_k == ALL else scores.gather(1, indices)
    weights = chosen / chosen.sum(1, keepdim=True) if renormalize else chosen
    probs = scores / scores.sum(1, keepdim=True)
    torch.testing.assert_close(routing.weights_TK.cpu().double(), weights.detach(), rtol=1e-5, atol=1e-30)
    torch.testing.assert_close(partials.sum(0)[5:10].cpu().double(), probs.detach().sum(0), rtol=1e-5, atol=1e-6)

    grad_weights, grad_probs = torch.randn(routing.weights_TK.shape), torch.randn(5)
    total = (weights * grad_weights).sum() + (probs.sum(0) * grad_probs).sum()
    (expected,) = torch.autograd.grad(total, wide)
    grad_sums = torch.cat([torch.zeros(5), grad_probs, torch.zeros(2)]).to(device)
    got = module.choose_backward(grad_weights.reshape(-1, 1).to(device), grad_sums, routing, None, rule)
    torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-5, atol=1e-6)


def expected_order(logits, biases):
    """By the fp32 sum of sigmoid and bias, then by the logit, then by the index."""

    def place(expert):
        score = torch.tensor(logits[expert], dtype=torch.float64).neg().exp().add(1).reciprocal().float()
        return -(score + biases[expert]).item(), -logits[expert], expert

    return sorted(range(len(logits)), key=place)


@pytest.mark.parametrize("biases", [None, [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5]], ids=str)
def test_saturated_sigmoids_are_ordered_by_their_logits(biases, backend, device):
    bias = None if biases is None else torch.tensor(biases, device=device)
    for sign in (1.0, -5.0):
        logits = [20.0 * sign, 30.0 * sign, 40.0 * sign, 10.0 * sign]
        routing, _ = dispatch.get(backend).choose(
            torch.tensor([logits], device=device), bias, None, Rule(3, "sigmoid", True)
        )
        best_first = sorted(range(4), key=lambda e: -logits[e])
        if biases is not None and biases[3]:
            best_first = [3, *(e for e in best_first if e != 3)]
        assert routing.indices_TK.tolist() == [best_first[:3]]


@pytest.mark.parametrize("top_k", [2, 9])
def test_scores_then_logits_then_indices(top_k, backend, device):
    """Sums of these scores and biases are equal where they are 0 or 1 plus one bias, and far apart elsewhere."""
    torch.manual_seed(0)
    logits = torch.tensor([-200.0, -150.0, -120.0, 0.0, 1.0, 20.0, 30.0, 60.0])[torch.randint(8, (70, 9))]
    biases = torch.tensor([0.0, 0.3, -0.15])[torch.randint(3, (9,))]
    routing, _ = dispatch.get(backend).choose(logits.to(device), biases.to(device), None, Rule(top_k, "sigmoid", True))
    expected = [expected_order(row, biases)[:top_k] for row in logits.tolist()]
    assert routing.indices_TK.tolist() == expected
