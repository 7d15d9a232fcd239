"""Liger's fused experts."""

from torch import Tensor, nn

from bench.contenders.our_layer import Layer
from bench.contenders.stacked import StackedExperts


class LigerExperts(nn.Module):
    """swiglu, no bias"""

    def __init__(self, layer: Layer):
        super().__init__()
        self.up_weight = nn.Parameter(layer.experts.up_weight.detach().clone())
        self.down_weight = nn.Parameter(layer.experts.down_weight.detach().clone())

    def forward(self, x_TH: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
        from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

        return LigerFusedMoEFunction.apply(x_TH, self.up_weight, self.down_weight, indices_TK.int(), weights_TK)


def liger(layer: Layer) -> nn.Module:
    return StackedExperts(layer, LigerExperts(layer))
