"""What a router decided, and the order in which the experts run.

Shape suffixes used in the whole of `kernels`:

    T  tokens (all leading dimensions, flattened)     H  hidden size
    K  experts a token                                F  width inside an expert
    E  experts                                        U  rows of `up_weight`: F, or 2F for a gated activation
    S  slots: S = T * K, slot s = token s // K        G  input size of a router's last layer: H, or H // 2
    B  tiles of tokens, each backend's own choice     O  segment starts: O = E + 1

Worked example: four tokens, top-2 of three experts, and the last token is masked.

>>> import torch
>>> from kernels import reference
>>> from kernels.records import Rule
>>> logits_TE = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0], [1.0, 1.0, 0.0], [9.0, 9.0, 9.0]])
>>> mask_T = torch.tensor([True, True, True, False])
>>> routing, partials_BL = reference.choose(logits_TE, None, mask_T, Rule(2, "softmax", True))
>>> routing.indices_TK                               # a tie (token 2) goes to the lower index; -1 is no expert
tensor([[ 0,  2],
        [ 1,  2],
        [ 0,  1],
        [-1, -1]], dtype=torch.int32)
>>> plan = reference.plan(routing.indices_TK, num_experts=3)
>>> plan.order_S                                   # slots by expert, in token order; unused slots at the end
tensor([0, 4, 2, 5, 1, 3, 6, 7], dtype=torch.int32)
>>> plan.offsets_O                                 # expert 0 has rows 0-1, expert 1 rows 2-3, expert 2 rows 4-5
tensor([0, 2, 4, 6], dtype=torch.int32)
>>> routing.counts_E
tensor([2, 2, 2])
"""

from typing import NamedTuple

import torch
from torch import Tensor

ROUTERS = ("softmax", "topk_softmax", "sigmoid")

ALL = 0
"""The `top_k` of the ops for "every expert runs on every token": weights_TK is then [T, E], indices_TK is [T, 0]."""


def best_experts(ranking_TE: Tensor, top_k: int, ties_TE: Tensor | None = None) -> Tensor:
    """The columns with the largest numbers of each row, best first; a tie goes to the larger of `ties`, if there are,
    then to the lower index."""
    if ties_TE is None:
        return ranking_TE.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    by_ties_TE = ties_TE.sort(dim=-1, descending=True, stable=True).indices
    return by_ties_TE.gather(1, best_experts(ranking_TE.gather(1, by_ties_TE), top_k))


def with_one_unused(indices: Tensor, num_experts: int) -> Tensor:
    """Indices of experts, and E for every other: each of them means an unassigned slot."""
    return torch.where((indices < 0) | (indices >= num_experts), num_experts, indices)


def count_slots(indices_TK: Tensor, num_experts: int) -> Tensor:
    """Slots of each expert (int64); an index outside 0..E-1 is unassigned. Integers sum alike in any order."""
    indices = with_one_unused(indices_TK.flatten().long(), num_experts)
    counts = indices.new_zeros(num_experts + 1)
    return counts.scatter_add_(0, indices, torch.ones_like(indices))[:num_experts]


class Routing(NamedTuple):
    """What a router decided for T tokens."""

    weights_TK: Tensor
    """fp32 (fp64 for fp64 inputs). How much each chosen expert counts; 0 for a masked token."""
    indices_TK: Tensor
    """int32. The chosen experts, best first; -1 for a masked token. Distinct within a token."""
    logits_TE: Tensor
    """fp32 (fp64 for fp64 inputs). What the router said, noise included; 0 for a masked token."""

    @property
    def counts_E(self) -> Tensor:
        """How many tokens each expert runs on (int64)."""
        return count_slots(self.indices_TK, self.logits_TE.shape[-1])


class Plan(NamedTuple):
    """The slots in the order in which the experts run on them.

    Rows "in plan order" are rows of `order_S`: one contiguous segment an expert. Rows "in slot order" are where the
    caller left them. There is no inverse: plan order is turned into slot order by scattering through `order_S`.
    """

    order_S: Tensor
    """int32. A permutation of 0..S-1, sorted by expert, stable; slots without an expert come last."""
    offsets_O: Tensor
    """int32 [E + 1]. Expert e owns rows offsets[e]:offsets[e+1]; rows from offsets[E] on are unassigned."""
