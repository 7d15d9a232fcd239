"""Sequences end to end, none of them copied."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class Chained(Sequence):
    """
    >>> list(Chained(["ab", "", "c"]))
    ['a', 'b', 'c']
    """

    def __init__(self, parts: Sequence[Sequence[Any]]):
        self.parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        part = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self.parts[part][place - int(self._starts[part])]
