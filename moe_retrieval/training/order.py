"""Which examples make up each batch: a function of seed, epoch and nothing else."""

import numpy as np


class BatchOrder:
    """The global batches of each epoch, shuffled anew. Rank r of W takes the rows r::W of each.

    The last batch may be smaller: every example is seen once an epoch.
    """

    def __init__(self, num_examples: int, batch_size: int, seed: int):
        for argument, value, least in (("num_examples", num_examples, 1), ("batch_size", batch_size, 1)):
            if value < least:
                raise ValueError(f"{argument} must be at least {least}, got {value}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.num_examples, self.batch_size, self.seed = num_examples, batch_size, seed

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-self.num_examples // self.batch_size)

    def batches(self, epoch: int) -> list[np.ndarray]:
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_examples)
        return [order[start : start + self.batch_size] for start in range(0, self.num_examples, self.batch_size)]
