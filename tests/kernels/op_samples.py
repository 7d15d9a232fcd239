"""Arguments for every op that `kernels` registers with PyTorch."""

import torch

from kernels import functional, generated
from kernels.dropout import Dropout
from kernels.encoder import attention, residual
from kernels.records import ExpertWeights, GateWeights, LowRankExperts, Passages, Rule, Sequences, Tokens
from kernels.routing import Routing


def op_samples(device):
    """Every op of ours with its arguments, in fp32 and of every kind: (Op, arguments)."""
    with device:
        yield from _samples()
        yield from _generated_samples()


def _samples():
    E, F, H = 4, 6, 5
    experts = ExpertWeights(torch.randn(E, F, H), torch.randn(E, F), torch.randn(E, H, F), torch.randn(E, H))
    x, router_weight = torch.randn(7, 5), torch.randn(4, 5)
    mask = torch.tensor([1, 1, 1, 0, 1, 1, 1]).bool()
    noise, bias = torch.randn(7, 4), torch.randn(4)
    linear = Tokens(x, mask), GateWeights(None, None, router_weight)
    mlp = Tokens(x, None, noise), GateWeights(torch.randn(2, 5), torch.randn(2), torch.randn(4, 2), bias, bias)
    unbiased = experts._replace(up_bias_EU=None, down_bias_EH=None)
    for top_k in (1, 2, 0):
        for keep in (True, False):
            rule = Rule(top_k, "softmax", True)
            yield functional.moe_forward, (*linear, experts, rule, "gelu", False, keep, keep)
        settings = (Rule(top_k, "sigmoid", True), "gelu", True)
        out = functional.moe_forward(*mlp, unbiased, *settings, True, True)
        saved = (out.pre, out.routing, out.plan)
        for needed in (True, False):
            yield functional.moe_backward, (
                torch.randn(7, 5), out.sums_L, *mlp, unbiased, *saved, *settings, needed, needed,
            )  # fmt: skip
    logits = torch.randn(7, 4)
    yield functional.route_forward, (logits, bias, mask, Rule(2, "sigmoid", True))
    routing = Routing(weights_of(logits), indices_of(logits), logits)
    yield functional.route_backward, (torch.randn(7, 2), None, routing, mask, Rule(2, "softmax", True))
    slots = (indices_of(logits), weights_of(logits))
    yield functional.experts_forward, (x, *slots, experts, "gelu", True)
    _, *saved = functional.experts_forward(x, *slots, experts, "gelu", True)
    yield functional.experts_backward, (torch.randn(7, 5), x, slots[1], experts, *saved, "gelu", True, True)
    q, k, v = torch.randn(3, 7, 2, 4).unbind()
    how = Sequences(torch.tensor([0, 3, 7], dtype=torch.int32), 4), Dropout(0.1, torch.tensor(3))
    yield attention.attention_forward, (q, k, v, *how)
    attended = attention.attention_forward(q, k, v, *how)
    yield attention.attention_backward, (torch.randn(7, 2, 4), q, k, v, attended, *how)
    x, y, weight, bias = torch.randn(7, 5), torch.randn(7, 5), torch.randn(5), torch.randn(5)
    yield residual.residual_norm_forward, (x, y, weight, bias, 1e-5, how[1])
    normed = residual.residual_norm_forward(x, y, weight, bias, 1e-5, how[1])
    yield residual.residual_norm_backward, (torch.randn(7, 5), x, y, weight, bias, normed.stats, how[1])


def _generated_samples():
    R, H, starts = 2, 5, torch.tensor([0, 3, 3, 7], dtype=torch.int32)
    shapes = (R, H), (H, R), (R, H), (R, H)
    x, scores, mask = torch.randn(7, H), torch.randn(3), torch.tensor([1, 1, 1, 0, 1, 1, 1]).bool()
    deltas = LowRankExperts(*(torch.randn(3, *shape) for shape in shapes))
    base, none = LowRankExperts(*map(torch.randn, shapes)), LowRankExperts(None, None, None, None)
    for counts, most, shared, live in (([0, 2, 2, 3], 2, base, mask), ([0, 1, 2, 3], 1, none, None)):
        given = Passages(torch.tensor(counts, dtype=torch.int32), most), scores, deltas, shared
        yield generated.generated_forward, (x, live, starts, *given)
        _, *inside = generated.generated_forward(x, live, starts, *given)
        for needed in (True, False):
            yield generated.generated_backward, (torch.randn(7, H), x, *given, *inside, needed, needed)


def weights_of(logits):
    return logits.softmax(-1)[:, :2].contiguous()


def indices_of(logits):
    return torch.tensor([[0, 1]] * len(logits), dtype=torch.int32)
