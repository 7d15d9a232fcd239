"""A feed-forward part: one expert, or the dense one that does as much work a token as the chosen experts do."""

import torch.nn.functional as F
from torch import Tensor, nn

from bench.contenders.gate import active
from bench.contenders.our_layer import Layer

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
GATED = {"swiglu": F.silu, "geglu": F.gelu}


class FFN(nn.Module):
    """down(activation(up(x)))"""

    def __init__(self, hidden_size: int, ffn_size: int, activation: str = "gelu", bias: bool = True):
        super().__init__()
        self.up = nn.Linear(hidden_size, ffn_size * (2 if activation in GATED else 1), bias=bias)
        self.down = nn.Linear(ffn_size, hidden_size, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(activate(self.up(x), self.activation))


def activate(pre: Tensor, activation: str) -> Tensor:
    if activation in GATED:
        gate, value = pre.chunk(2, -1)
        return GATED[activation](gate) * value
    return ACTIVATIONS[activation](pre)


def dense(layer: Layer) -> nn.Module:
    """No gate, no gather: the limit."""
    has_bias = layer.experts.up_bias is not None
    model = FFN(layer.hidden_size, active(layer) * layer.expert_size, layer.activation, has_bias)
    return model.to(layer.router.weight)
