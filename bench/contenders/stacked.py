"""Experts whose weights are stacked: what takes x [T, H], indices [T, K] and weights [T, K], behind the common gate."""

from torch import Tensor, nn

from bench.contenders.gate import gate_of
from bench.contenders.our_layer import Layer
from kernels import SBMoE


class StackedExperts(nn.Module):
    def __init__(self, layer: Layer, experts: nn.Module):
        super().__init__()
        self.gate, self.experts, self.residual = gate_of(layer), experts, isinstance(layer, SBMoE)
        self.to(layer.router.weight)

    def forward(self, x_TH: Tensor) -> Tensor:
        weights_TK, indices_TK = self.gate(x_TH)
        y_TH = self.experts(x_TH, indices_TK, weights_TK.to(x_TH.dtype))
        return x_TH + y_TH if self.residual else y_TH
