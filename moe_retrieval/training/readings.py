"""The numbers that steps left on a device, read when that stops nothing."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from moe_retrieval.copies import Fetched
from moe_retrieval.training.distributed import World, mean_of_ranks


class Reading(NamedTuple):
    step: int
    values: list[float]
    """Means over the ranks."""


class Readings:
    """What each step computed, in the order of the steps.

    A CPU has it at once. A GPU is a step behind the host, which would wait for it: there the newest step is left out,
    unless all are asked for.
    """

    def __init__(self, world: World):
        self.world, self.lag = world, int(world.device.type == "cuda")
        self.coming: deque[tuple[int, Fetched]] = deque()

    def add(self, step: int, values: Sequence[Tensor]) -> None:
        """Every rank's, in one exchange."""
        self.coming.append((step, Fetched(mean_of_ranks(values, self.world))))

    def read(self, everything: bool = False) -> Iterator[Reading]:
        while len(self.coming) > (0 if everything else self.lag):
            step, fetched = self.coming.popleft()
            yield Reading(step, fetched.get().tolist())
