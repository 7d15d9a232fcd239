"""The experts implementations of transformers: "eager", "batched_mm", "grouped_mm"."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contenders.ffn import ACTIVATIONS, GATED, activate
from bench.contenders.our_layer import Layer
from bench.contenders.stacked import StackedExperts


class LoopOverStack(nn.Module):
    """Experts in the form that transformers' interface expects of a model; the forward is its "eager"."""

    def __init__(self, config: SimpleNamespace, layer: Layer):
        super().__init__()
        up, down = layer.experts.up_weight, layer.experts.down_weight
        self.num_experts, self.activation = len(up), layer.activation
        name = "gate_up_proj" if layer.activation in GATED else "up_proj"
        self.up_name, self.act_fn = name, GATED.get(layer.activation) or ACTIVATIONS[layer.activation]
        parameters = {name: up, "down_proj": down}
        if layer.experts.up_bias is not None:
            parameters |= {f"{name}_bias": layer.experts.up_bias, "down_proj_bias": layer.experts.down_bias}
        for key, value in parameters.items():
            self.register_parameter(key, nn.Parameter(value.detach().clone()))

    def forward(self, x_TH: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
        up, down = getattr(self, self.up_name), self.down_proj
        up_bias, down_bias = getattr(self, f"{self.up_name}_bias", None), getattr(self, "down_proj_bias", None)
        out_TH = torch.zeros_like(x_TH)
        for e in indices_TK.unique().tolist():
            token, slot = torch.where(indices_TK == e)
            pre = F.linear(x_TH[token], up[e], None if up_bias is None else up_bias[e])
            act = activate(pre, self.activation)
            y = F.linear(act, down[e], None if down_bias is None else down_bias[e])
            out_TH.index_add_(0, token, y * weights_TK[token, slot, None])
        return out_TH


def hugging_face(layer: Layer, implementation: str) -> nn.Module:
    from transformers.integrations.moe import use_experts_implementation

    flags = dict(has_bias=layer.experts.up_bias is not None, has_gate=layer.activation in GATED)
    kind = use_experts_implementation(**flags)(type("Experts", (LoopOverStack,), {}))
    return StackedExperts(layer, kind(SimpleNamespace(_experts_implementation=implementation), layer))
