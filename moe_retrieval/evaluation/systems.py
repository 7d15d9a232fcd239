"""The systems of a comparison: BM25, a backbone as it is, and variants, each trained once for each seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moe_retrieval.evaluation.metrics import Measures, mean_of


@dataclass(frozen=True)
class Measured:
    """One model, or BM25, on one collection."""

    measures: Mapping[str, Measures]
    """By split"""
    costs: Mapping[str, float]
    """What is known of it: its parameters, how long it was trained, how fast it is"""

    def with_costs(self, costs: Mapping[str, float]) -> "Measured":
        return Measured(self.measures, {**self.costs, **costs})


@dataclass(frozen=True)
class System:
    name: str
    measured: Sequence[Measured]
    """One for each seed; of what was not trained, a single one."""
    seeds: Sequence[int] = ()
    folders: Sequence[str] = ()
    """Where its rankings are, below that of the comparison"""

    def mean(self, split: str) -> Measures:
        """Each query's own mean over the seeds."""
        return mean_of([one.measures[split] for one in self.measured])

    def by_seed(self, split: str, measure: str) -> list[float]:
        return [one.measures[split].means[measure] for one in self.measured]

    def by_seed_at(self, split: str, measure: str, places: np.ndarray) -> list[float]:
        """Over some of the queries alone, by their places in the order of the qrels."""
        return [float(np.mean(one.measures[split].per_query[measure][places])) for one in self.measured]

    def cost(self, name: str) -> float | None:
        """The mean over the seeds of which it is known."""
        known = [one.costs[name] for one in self.measured if name in one.costs]
        return float(np.mean(known)) if known else None


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation, of a sample; a single value has none.

    >>> spread([1.0, 3.0]), spread([1.0])
    (1.4142135623730951, None)
    """
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
