"""What travels together through `kernels`: small records of tensors and settings, each of them one idea.

Functions take records; an op of PyTorch takes their fields one by one (`ops.py`). Shape suffixes: see `routing.py`,
which has the two other records, what a router decided (`Routing`) and the order in which experts run (`Plan`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Tokens(NamedTuple):
    """The rows that a layer is called on."""

    x_TH: Tensor
    mask_T: Tensor | None = None
    """bool. Where it is false, a token is not routed, counts nowhere, and can hold anything, even NaN."""
    noise_TE: Tensor | None = None
    """Drawn for this call, and added to the logits."""

    def without_masked(self) -> Tensor:
        """x with zeros in masked rows: a weight of zero would not silence a NaN."""
        return zero_masked(self.x_TH, self.mask_T)


class GateWeights(NamedTuple):
    """The parameters of a router, of a linear one or, with a hidden layer, of an mlp; and the bias of its choice."""

    hidden_weight_GH: Tensor | None
    hidden_bias_G: Tensor | None
    weight_EG: Tensor
    bias_E: Tensor | None = None
    selection_bias_E: Tensor | None = None
    """Moves the choice and not the weights (sigmoid routers); without gradient."""


class ExpertWeights(NamedTuple):
    """The parameters of E experts, stacked; a bias that is None is none. Also their gradients."""

    up_weight_EUH: Tensor
    up_bias_EU: Tensor | None
    down_weight_EHF: Tensor
    down_bias_EH: Tensor | None

    @property
    def up(self) -> tuple[Tensor, Tensor | None]:
        return self.up_weight_EUH, self.up_bias_EU

    @property
    def down(self) -> tuple[Tensor, Tensor | None]:
        return self.down_weight_EHF, self.down_bias_EH

    def to(self, dtype: torch.dtype) -> ExpertWeights:
        return ExpertWeights._make(t if t is None else t.to(dtype) for t in self)


class LowRankExperts(NamedTuple):
    """An expert of low rank R for each of P passages, stacked: y = relu(x enterᵀ upᵀ) downᵀ leave.

    Or, without P, what is added to each of them. Also the gradients. See `generated.py`.
    """

    enter_PRH: Tensor
    up_PHR: Tensor
    down_PRH: Tensor
    leave_PRH: Tensor

    def plus(self, base: LowRankExperts | None) -> LowRankExperts:
        """The whole experts, where these are what tells them apart. A base of None, or of Nones, is none."""
        if base is None:
            return self
        return LowRankExperts._make(own if shared is None else own + shared for own, shared in zip(self, base))

    def to(self, dtype: torch.dtype) -> LowRankExperts:
        return LowRankExperts._make(t if t is None else t.to(dtype) for t in self)


class Passages(NamedTuple):
    """Passages laid end to end: sample i has those from cu_passages[i] to cu_passages[i + 1], at most max_passages."""

    cu_passages: Tensor
    max_passages: int


class Rule(NamedTuple):
    """How experts are chosen from logits."""

    top_k: int
    """`routing.ALL` for all."""
    router: str
    renormalize: bool


class GateGrads(NamedTuple):
    """What flows back into a gate."""

    weights_SP: Tensor
    """Of the weights of the slots, in P parts that are still to be summed."""
    sums_L: Tensor | None
    """Of the sums that the losses take."""
    x_SH: Tensor | None = None
    """What experts send back to x, in slot order; None where x's gradient is not needed."""
    residual_TH: Tensor | None = None
    """What a residual connection adds to x's gradient."""


class Sequences(NamedTuple):
    """Sequences laid end to end: sequence i is the rows cu_seqlens[i] : cu_seqlens[i + 1], none longer than max_len."""

    cu_seqlens: Tensor
    max_len: int


def zero_masked(tensor_TH: Tensor, mask_T: Tensor | None) -> Tensor:
    return tensor_TH if mask_T is None else torch.where(mask_T[:, None], tensor_TH, 0)


def flatten(values: Iterable[Any]) -> list[Any]:
    """Records and others -> the fields of the records, and the others, in one list."""
    flat: list[Any] = []
    for value in values:
        if isinstance(value, tuple):
            flat.extend(value)
        else:
            flat.append(value)
    return flat


def pack(flat: Sequence[Any], *kinds: type) -> list[Any]:
    """The reverse of `flatten`, for values of these kinds."""
    values, first = [], 0
    for kind in kinds:
        fields = getattr(kind, "_fields", None)
        last = first + (1 if fields is None else len(fields))
        values.append(flat[first] if fields is None else kind(*flat[first:last]))
        first = last
    return values
