"""Experts that are modules of their own: the loop over them, and all of them on every token."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from bench.contenders.ffn import FFN
from bench.contenders.gate import Gate, gate_of
from bench.contenders.our_layer import Layer
from kernels import SBMoE


class SeparateExperts(nn.Module):
    """A gate and experts that are modules of their own."""

    def __init__(self, gate: Gate, experts: Iterable[FFN], residual: bool = False):
        super().__init__()
        self.gate, self.experts, self.residual = gate, nn.ModuleList(experts), residual

    def forward(self, x_TH: Tensor) -> Tensor:
        y_TH = self.mix(x_TH, *self.gate(x_TH))
        return x_TH + y_TH if self.residual else y_TH


class ExpertLoop(SeparateExperts):
    """A Python loop over the experts, each on its own tokens: the baseline of the papers.

    Separate `nn.Linear`s, because indexing one stacked parameter in a loop copies a gradient of the whole stack.
    """

    def mix(self, x_TH: Tensor, weights_TK: Tensor, indices_TK: Tensor) -> Tensor:
        out_TH = torch.zeros_like(x_TH)
        for token, weighted in self.parts(x_TH, weights_TK, indices_TK):
            out_TH = out_TH.index_add(0, token, weighted)
        return out_TH

    def parts(self, x_TH: Tensor, weights_TK: Tensor, indices_TK: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each expert its tokens and what it adds to their sums."""
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(indices_TK == e)
            yield token, expert(x_TH[token]) * weights_TK[token, slot, None].to(x_TH.dtype)


class ExpertLoopInPlace(ExpertLoop):
    """Its sum is one tensor, which is not copied for each expert."""

    def mix(self, x_TH: Tensor, weights_TK: Tensor, indices_TK: Tensor) -> Tensor:
        out_TH = torch.zeros_like(x_TH)
        for token, weighted in self.parts(x_TH, weights_TK, indices_TK):
            out_TH.index_add_(0, token, weighted)
        return out_TH


class EveryExpert(SeparateExperts):
    """Every expert on every token, and most of the results multiplied by zero: what the code of SB-MoE does."""

    def mix(self, x_TH: Tensor, weights_TK: Tensor, indices_TK: Tensor) -> Tensor:
        all_TEH = torch.stack([expert(x_TH) for expert in self.experts], 1)
        weights_TE = torch.zeros(len(x_TH), len(self.experts), device=x_TH.device).scatter(1, indices_TK, weights_TK)
        return torch.einsum("te,teh->th", weights_TE.to(x_TH.dtype), all_TEH)


def loop(layer: Layer) -> nn.Module:
    return _separate(ExpertLoop, layer)


def loop_in_place(layer: Layer) -> nn.Module:
    return _separate(ExpertLoopInPlace, layer)


def every_expert(layer: Layer) -> nn.Module:
    return _separate(EveryExpert, layer)


def _separate(kind: type[SeparateExperts], layer: Layer) -> nn.Module:
    stacks = layer.experts
    has_bias = stacks.up_bias is not None
    experts = [FFN(layer.hidden_size, layer.expert_size, layer.activation, has_bias) for _ in range(layer.num_experts)]
    with torch.no_grad():
        for e, expert in enumerate(experts):
            expert.up.weight.copy_(stacks.up_weight[e])
            expert.down.weight.copy_(stacks.down_weight[e])
            if has_bias:
                expert.up.bias.copy_(stacks.up_bias[e])
                expert.down.bias.copy_(stacks.down_bias[e])
    return kind(gate_of(layer), experts, isinstance(layer, SBMoE)).to(layer.router.weight)
