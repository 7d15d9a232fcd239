"""A feed-forward part: one expert, or the dense one that does as much work a token as the chosen experts do."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contenders.gate import active
from bench.contenders.our_layer import Layer
from bench.harness import onednn

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


class OneDNNLinear(torch.autograd.Function):
    """A linear map, all three products by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        return onednn.linear(x_NI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_NO,), (x_NI, weight_OI) = grads, ctx.saved_tensors
        grad_bias_O = grad_NO.sum(0) if ctx.needs_input_grad[2] else None
        return onednn.linear(grad_NO, weight_OI.T), onednn.linear(grad_NO.T, x_NI.T), grad_bias_O


class OneDNNFFN(FFN):
    def forward(self, x: Tensor) -> Tensor:
        hidden = activate(OneDNNLinear.apply(x, self.up.weight, self.up.bias), self.activation)
        return OneDNNLinear.apply(hidden, self.down.weight, self.down.bias)


def activate(pre: Tensor, activation: str) -> Tensor:
    if activation in GATED:
        gate, value = pre.chunk(2, -1)
        return GATED[activation](gate) * value
    return ACTIVATIONS[activation](pre)


def dense(layer: Layer, kind: type[FFN] = FFN) -> nn.Module:
    """No gate, no gather: the limit."""
    torch.manual_seed(0)
    has_bias = layer.experts.up_bias is not None
    model = kind(layer.hidden_size, active(layer) * layer.expert_size, layer.activation, has_bias)
    return model.to(layer.router.weight)
