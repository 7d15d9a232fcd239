"""What an epoch has of several data sets."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moe_retrieval.training.pairs import Example, TrainingPairs


class Part(NamedTuple):
    """What is trained on of one data set."""

    pairs: TrainingPairs
    rows: np.ndarray
    """The pairs that are not held out."""
    weight: float = 1.0
    """How often they come in an epoch: 2 is twice each, 0.1 a tenth of them, another one in every epoch."""


class Mixture:
    """The examples of an epoch: a function of seed and epoch and nothing else. Their order is `BatchOrder`'s."""

    def __init__(self, parts: Sequence[Part], seed: int):
        self.parts, self.seed = parts, seed
        self._starts = np.cumsum([0, *(len(part.rows) for part in parts)])

    def __len__(self) -> int:
        """Examples an epoch."""
        return sum(map(_size, self.parts))

    def of_epoch(self, epoch: int) -> np.ndarray:
        """Numbers of examples, those of a part after those of the part before."""
        drawn = []
        for number, (part, start) in enumerate(zip(self.parts, self._starts), 1):
            size = len(part.rows)
            whole = int(part.weight)
            drawn += [start + np.arange(size)] * whole
            shuffled = np.random.default_rng([self.seed, epoch, number]).permutation(size)
            drawn.append(start + shuffled[: _size(part) - whole * size])
        return np.concatenate(drawn)

    def example(self, number: int) -> tuple[int, Example]:
        """-> the place of its part among the parts, and the example"""
        place = int(np.searchsorted(self._starts, number, side="right")) - 1
        part = self.parts[place]
        return place, part.pairs[int(part.rows[number - self._starts[place]])]


def _size(part: Part) -> int:
    """Examples of a part in an epoch; a weight that is not 0 takes one at least."""
    return max(1, round(part.weight * len(part.rows)))
