"""Dropout as a function of a seed and of an element's place.

The backward, another backend and another chunk of a batch then find the same mask, and none of them stores it.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Dropout(NamedTuple):
    rate: float
    seed: Tensor | None
    """None where the rate is 0."""


def draw_dropout(rate: float, device: torch.device) -> Dropout:
    """A dropout with a seed of its own, drawn on the device: a CUDA graph draws another at each replay."""
    if rate == 0.0:
        return Dropout(rate, None)
    return Dropout(rate, torch.randint(2**31, (), device=device))


def dropout_hash(seed: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """A 32-bit hash in int64, of the seed, a row and a column: two rounds of a multiply-xorshift mixer."""

    def mix(h: Tensor) -> Tensor:
        h = (h ^ (h >> 16)) * 0x7FEB352D & 0xFFFFFFFF
        h = (h ^ (h >> 15)) * 0x846CA68B & 0xFFFFFFFF
        return h ^ (h >> 16)

    return mix(mix((row ^ seed) & 0xFFFFFFFF) + column * 0x9E3779B9 & 0xFFFFFFFF)
