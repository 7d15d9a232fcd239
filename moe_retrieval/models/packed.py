"""Sequences of token ids laid end to end, on the host: what a device takes them from, all or a few of them."""

from collections.abc import Sequence
from itertools import accumulate, chain
from operator import sub
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_retrieval.copies import to_device


class PackedTokens(Sequence[Sequence[int]]):
    """As a list of lists, of which a part costs nothing and a device needs no other form.

    >>> packed = PackedTokens([[5, 6, 7], [8], [9, 9]])
    >>> packed[1:].to("cpu")
    (tensor([8, 9, 9]), tensor([0, 1, 3], dtype=torch.int32), 2)
    """

    def __init__(self, sequences: Sequence[Sequence[int]]):
        self.starts = [0, *accumulate(map(len, sequences))]
        self.ids_T = torch.from_numpy(np.fromiter(chain.from_iterable(sequences), np.int64, self.starts[-1]))

    def pinned(self) -> "PackedTokens":
        return self._part(self.starts, self.ids_T.pin_memory())

    def _part(self, starts: list[int], ids_T: Tensor) -> "PackedTokens":
        part = PackedTokens.__new__(PackedTokens)
        part.starts, part.ids_T = starts, ids_T
        return part

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, place: Any) -> Any:
        """A sequence; or several that follow each other, of a slice without a step."""
        if isinstance(place, slice):
            first, last, _ = place.indices(len(self))
            return self._part(self.starts[first : max(first, last) + 1], self.ids_T)
        first, last = self.starts[:-1][place], self.starts[1:][place]
        return self.ids_T[first:last].tolist()

    @property
    def num_tokens(self) -> int:
        return self.starts[-1] - self.starts[0]

    def to(self, device: torch.device | str) -> tuple[Tensor, Tensor, int]:
        """-> input_ids_T, cu_seqlens (int32), max_len: what an encoder takes."""
        starts, ids_T = self.starts, self.ids_T
        if starts[0] or starts[-1] != len(ids_T):  # a part
            ids_T = ids_T[starts[0] : starts[-1]]
            starts = [start - starts[0] for start in starts]
        cu_seqlens = torch.tensor(starts, dtype=torch.int32)
        longest = max(map(sub, starts[1:], starts), default=0)
        return to_device(ids_T, device), to_device(cu_seqlens, device), longest
