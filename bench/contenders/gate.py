"""The gate that every contender has, in fp32 like ours, so that all of them route a token alike."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contenders.our_layer import Layer


class Gate(nn.Module):
    """A linear router, or one with a hidden layer: softmax over all experts, then the best."""

    def __init__(self, hidden_size: int, num_experts: int, top_k: int, renormalize: bool = True, mlp: bool = False):
        super().__init__()
        self.hidden = nn.Linear(hidden_size, max(1, hidden_size // 2)) if mlp else None
        self.last = nn.Linear(self.hidden.out_features if self.hidden else hidden_size, num_experts, bias=mlp)
        self.top_k, self.renormalize = top_k, renormalize

    def logits(self, x_TH: Tensor) -> Tensor:
        features = x_TH.float()
        if self.hidden is not None:
            features = F.linear(features, self.hidden.weight.float(), self.hidden.bias.float()).relu()
        return F.linear(features, self.last.weight.float(), None if self.last.bias is None else self.last.bias.float())

    def forward(self, x_TH: Tensor) -> tuple[Tensor, Tensor]:
        """-> weights_TK (fp32), indices_TK"""
        weights_TK, indices_TK = self.logits(x_TH).softmax(-1).topk(self.top_k)
        if self.renormalize:
            weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
        return weights_TK, indices_TK


def gate_of(layer: Layer) -> Gate:
    """With the weights of one of our layers."""
    gate = Gate(layer.hidden_size, layer.num_experts, active(layer), layer.renormalize, layer.gate == "mlp")
    with torch.no_grad():
        gate.last.weight.copy_(layer.router.weight)
        if gate.hidden is not None:
            gate.last.bias.copy_(layer.router.bias)
            gate.hidden.load_state_dict(layer.router.hidden.state_dict())
    return gate.to(layer.router.weight)


def active(layer: Layer) -> int:
    """Experts a token."""
    return layer.num_experts if layer.top_k == "all" else int(layer.top_k)
