"""How alike the experts of a layer are: in what they make of the same inputs, and in their weights."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.layers import RoutedLayer
from moe_retrieval.models.hash_experts import HashExperts
from moe_retrieval.training.watch import unit_outputs

SIZE = 512
"""Inputs on which experts are compared"""


class Sample:
    """Rows drawn evenly from all that come, the same ones in every run."""

    def __init__(self, size: int = SIZE):
        self.size, self.generator = size, torch.Generator().manual_seed(0)
        self.rows_SH: Tensor | None = None
        self.lots_S = torch.zeros(0)

    def add(self, rows_TH: Tensor) -> None:
        """Each row draws a lot, and the highest stay."""
        lots_T = torch.rand(len(rows_TH), generator=self.generator)
        if self.rows_SH is not None:
            rows_TH, lots_T = torch.cat([self.rows_SH, rows_TH]), torch.cat([self.lots_S, lots_T])
        best = lots_T.topk(min(self.size, len(lots_T))).indices
        self.rows_SH, self.lots_S = rows_TH[best], lots_T[best]


def describe_redundancy(name: str, layer: RoutedLayer | HashExperts, x_SH: Tensor) -> dict[str, Any]:
    """Between every two experts the mean cosine of their outputs, and the cosine of all their weights."""
    with torch.no_grad():
        outputs_EE, weights_EE = output_cosines(layer, x_SH), weight_cosines(layer)
    return {
        "layer": name,
        "inputs": len(x_SH),
        "mean_output_cosine": _mean_of_pairs(outputs_EE),
        "mean_weight_cosine": _mean_of_pairs(weights_EE),
        "outputs": outputs_EE.tolist(),
        "weights": weights_EE.tolist(),
    }


def output_cosines(layer: RoutedLayer | HashExperts, x_SH: Tensor) -> Tensor:
    """[E, E], the means over the inputs of which both experts make something; 0 where there is none."""
    unit_ETH = unit_outputs(layer, x_SH.to(layer.experts.up_weight.device)).double().cpu()
    present_ET = unit_ETH.square().sum(-1).round()
    flat_ED = unit_ETH.flatten(1)
    return (flat_ED @ flat_ED.T) / (present_ET @ present_ET.T).clamp(min=1)


def weight_cosines(layer: RoutedLayer | HashExperts) -> Tensor:
    """[E, E], each expert with all its weights and biases as one vector."""
    flat_ED = torch.cat([stack.detach().flatten(1) for stack in layer.experts.parameters()], dim=1)
    unit_ED = F.normalize(flat_ED.double().cpu(), dim=1)
    return unit_ED @ unit_ED.T


def _mean_of_pairs(cosines_EE: Tensor) -> float | None:
    """Of two different ones; None for a single expert."""
    experts = len(cosines_EE)
    if experts < 2:
        return None
    return float((cosines_EE.sum() - cosines_EE.trace()) / (experts * (experts - 1)))
