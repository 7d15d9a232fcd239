"""What people write or use today in place of our layers, with the weights of one of ours.

Every peer has the same gate, in fp32 like ours, so that all of them route a token alike: what differs is how the
experts are served.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.layers import RoutedLayer, SBMoE

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
GATED = {"swiglu": F.silu, "geglu": F.gelu}


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


class Expert(nn.Module):
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


class SeparateExperts(nn.Module):
    """A gate and experts that are modules of their own."""

    def __init__(
        self,
        hidden_size: int,
        ffn_size: int,
        num_experts: int,
        top_k: int,
        activation: str = "gelu",
        renormalize: bool = True,
        mlp_gate: bool = False,
        bias: bool = True,
        residual: bool = False,
    ):
        super().__init__()
        self.gate, self.residual = Gate(hidden_size, num_experts, top_k, renormalize, mlp_gate), residual
        self.experts = nn.ModuleList(Expert(hidden_size, ffn_size, activation, bias) for _ in range(num_experts))

    def forward(self, x_TH: Tensor) -> Tensor:
        y_TH = self.serve(x_TH, *self.gate(x_TH))
        return x_TH + y_TH if self.residual else y_TH


class ExpertLoop(SeparateExperts):
    """A Python loop over the experts, each on its own tokens: the baseline of the papers.

    Separate `nn.Linear`s, because indexing one stacked parameter in a loop copies a gradient of the whole stack.
    """

    def serve(self, x_TH: Tensor, weights_TK: Tensor, indices_TK: Tensor) -> Tensor:
        out_TH = torch.zeros_like(x_TH)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(indices_TK == e)
            weighted = expert(x_TH[token]) * weights_TK[token, slot, None].to(x_TH.dtype)
            out_TH = out_TH.index_add(0, token, weighted)
        return out_TH


class EveryExpert(SeparateExperts):
    """Every expert on every token, and most of the results multiplied by zero: what the code of SB-MoE does."""

    def serve(self, x_TH: Tensor, weights_TK: Tensor, indices_TK: Tensor) -> Tensor:
        all_TEH = torch.stack([expert(x_TH) for expert in self.experts], 1)
        weights_TE = torch.zeros(len(x_TH), len(self.experts), device=x_TH.device).scatter(1, indices_TK, weights_TK)
        return torch.einsum("te,teh->th", weights_TE.to(x_TH.dtype), all_TEH)


class StackedExperts(nn.Module):
    """A gate, and a function of x [T, H], indices [T, K], weights [T, K] and stacked parameters."""

    def __init__(self, gate: Gate, experts: nn.Module, residual: bool):
        super().__init__()
        self.gate, self.experts, self.residual = gate, experts, residual

    def forward(self, x_TH: Tensor) -> Tensor:
        weights_TK, indices_TK = self.gate(x_TH)
        y_TH = self.experts(x_TH, indices_TK, weights_TK.to(x_TH.dtype))
        return x_TH + y_TH if self.residual else y_TH


class LoopOverStack(nn.Module):
    """Experts in the form that transformers' interface expects of a model; the forward is its "eager"."""

    def __init__(self, config: SimpleNamespace, layer: RoutedLayer):
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


class DenseFFN(Expert):
    """One FFN that does as much work a token as the chosen experts: no gate, no gather. The limit."""


# From a layer of ours to its peers.


def loop(layer: RoutedLayer) -> nn.Module:
    return _separate(ExpertLoop, layer)


def every_expert(layer: RoutedLayer) -> nn.Module:
    return _separate(EveryExpert, layer)


def _separate(kind: type[SeparateExperts], layer: RoutedLayer) -> nn.Module:
    has_bias = layer.experts.up_bias is not None
    top_k = layer.num_experts if layer.top_k == "all" else int(layer.top_k)
    model = kind(
        layer.hidden_size, layer.expert_size, layer.num_experts, top_k, layer.activation, layer.renormalize,
        layer.gate == "mlp", has_bias, isinstance(layer, SBMoE),
    )  # fmt: skip
    with torch.no_grad():
        _copy_gate(model.gate, layer)
        for e, expert in enumerate(model.experts):
            expert.up.weight.copy_(layer.experts.up_weight[e])
            expert.down.weight.copy_(layer.experts.down_weight[e])
            if has_bias:
                expert.up.bias.copy_(layer.experts.up_bias[e])
                expert.down.bias.copy_(layer.experts.down_bias[e])
    return model.to(layer.router.weight)


def _copy_gate(gate: Gate, layer: RoutedLayer) -> Gate:
    with torch.no_grad():
        gate.last.weight.copy_(layer.router.weight)
        if gate.hidden is not None:
            gate.last.bias.copy_(layer.router.bias)
            gate.hidden.load_state_dict(layer.router.hidden.state_dict())
    return gate


def gate_of(layer: RoutedLayer) -> Gate:
    top_k = layer.num_experts if layer.top_k == "all" else int(layer.top_k)
    gate = Gate(layer.hidden_size, layer.num_experts, top_k, layer.renormalize, layer.gate == "mlp")
    return _copy_gate(gate, layer).to(layer.router.weight)


def hugging_face(layer: RoutedLayer, implementation: str) -> nn.Module:
    """Transformers' "eager", "batched_mm" or "grouped_mm"."""
    from transformers.integrations.moe import use_experts_implementation

    flags = dict(has_bias=layer.experts.up_bias is not None, has_gate=layer.activation in GATED)
    kind = use_experts_implementation(**flags)(type("Experts", (LoopOverStack,), {}))
    experts = kind(SimpleNamespace(_experts_implementation=implementation), layer)
    return StackedExperts(gate_of(layer), experts, isinstance(layer, SBMoE)).to(layer.router.weight)


class LigerExperts(nn.Module):
    """Liger's fused experts: swiglu, no bias."""

    def __init__(self, layer: RoutedLayer):
        super().__init__()
        self.up_weight = nn.Parameter(layer.experts.up_weight.detach().clone())
        self.down_weight = nn.Parameter(layer.experts.down_weight.detach().clone())

    def forward(self, x_TH: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
        from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

        return LigerFusedMoEFunction.apply(x_TH, self.up_weight, self.down_weight, indices_TK.int(), weights_TK)


def liger(layer: RoutedLayer) -> nn.Module:
    return StackedExperts(gate_of(layer), LigerExperts(layer), isinstance(layer, SBMoE)).to(layer.router.weight)


def dense(layer: RoutedLayer) -> nn.Module:
    top_k = layer.num_experts if layer.top_k == "all" else int(layer.top_k)
    has_bias = layer.experts.up_bias is not None
    model = DenseFFN(layer.hidden_size, top_k * layer.expert_size, layer.activation, has_bias)
    return model.to(layer.router.weight)
