"""A retriever's encoder, frozen, and how far the pass goes: what serves it in the place of its modules."""

from contextlib import suppress
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

import kernels
from kernels.encoder import CannotFreeze, FrozenEncoder

if TYPE_CHECKING:
    from moe_retrieval.models.retriever import Retriever


class Serving:
    """Made for the weights as they are; changes nothing once it is made, so threads can share it."""

    def __init__(self, encoder: FrozenEncoder, pools: bool, ends: bool):
        self.encoder = encoder
        self.pools, self.ends = pools, ends
        """Whether it has the mean of hidden states; whether what follows the mean is in it too."""

    def __deepcopy__(self, memo: dict) -> None:
        """A copied model is not frozen."""

    def __reduce__(self) -> tuple:
        return type(None), ()


def freeze(retriever: "Retriever", dtype: torch.dtype, to_the_end: bool = True) -> Serving | None:
    """None where there is no native pass for it: then its modules serve."""
    usage, pooled = retriever.settings.usage, retriever.block
    pools = usage.pooling == "mean"
    if retriever.training or retriever.encoder.tokens.weight.dtype != torch.float32:
        return None
    can_end = to_the_end and pools and isinstance(pooled, kernels.SBMoE | None)
    for ends in (True, False) if can_end else (False,):
        with suppress(CannotFreeze):
            frozen = FrozenEncoder(
                retriever.encoder.parts(),
                pooled=cast(kernels.SBMoE | None, pooled) if ends else None,
                normalize=ends and usage.normalize,
                dtype=dtype,
            )
            return Serving(frozen, pools, ends)
    return None


def signature(tensors: list[Tensor]) -> tuple[tuple[int, int], ...]:
    """Changes with whatever replaces one of these tensors, its memory or its values."""
    return tuple((t.data_ptr(), -1 if t.is_inference() else t._version) for t in tensors)
