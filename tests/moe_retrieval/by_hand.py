"""A layer of experts written down in a few lines of PyTorch, which can be told to leave an expert out."""

import torch
import torch.nn.functional as F
from torch import nn


def logits_of(layer, x):
    router = layer.router
    if router.hidden is not None:
        x = F.linear(x, router.hidden.weight, router.hidden.bias).relu()
    return F.linear(x, router.weight, router.bias)


def output_of(layer, expert, x):
    experts, activation = layer.experts, {"gelu": F.gelu, "relu": F.relu}[layer.activation]
    inner = activation(F.linear(x, experts.up_weight[expert], experts.up_bias[expert]))
    return F.linear(inner, experts.down_weight[expert], experts.down_bias[expert])


def weights_of(layer, x, without=None):
    """-> [tokens, experts], 0 for an expert that is not chosen. `without` has a score of minus infinity."""
    logits = logits_of(layer, x)
    if without is not None:
        logits[:, without] = -torch.inf
    sigmoid = layer.router_kind == "sigmoid"
    scores = logits.sigmoid() if sigmoid else logits.softmax(-1)
    if layer.top_k == "all":
        chosen = torch.ones_like(scores)
    else:
        ranked = scores + layer.router.balance_bias if sigmoid else logits
        if without is not None:
            ranked[:, without] = -torch.inf
        chosen = torch.zeros_like(scores).scatter(1, ranked.topk(layer.top_k).indices, 1.0)
    weights = scores * chosen
    relative = layer.renormalize or layer.router_kind == "topk_softmax"
    return weights / weights.sum(1, keepdim=True) if relative else weights


class ByHand(nn.Module):
    def __init__(self, layer, without=None):
        super().__init__()
        self.layer, self.without = layer, without

    def forward(self, x):
        layer = self.layer
        weights = weights_of(layer, x, self.without)
        mix = sum(weights[:, [expert]] * output_of(layer, expert, x) for expert in range(layer.num_experts))
        combine = getattr(layer, "combine", None)
        if combine == "normalized":
            mix = mix / mix.norm(dim=-1, keepdim=True)
        return mix if combine is None else x + mix
