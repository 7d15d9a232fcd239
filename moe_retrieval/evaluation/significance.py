"""Whether one system really is better than another."""

from collections.abc import Sequence

import numpy as np

EXACT_UP_TO = 16
"""Pairs that differ: 65,536 sign patterns"""

LEAST_DIFFERENT = 6
"""Queries: with fewer that differ, no p could be below 0.05, whatever they say"""


def p_of_difference(a: np.ndarray, b: np.ndarray) -> float | None:
    """The p of `randomization_test`; None where too few queries differ for any p to say something."""
    return None if np.count_nonzero(a != b) < LEAST_DIFFERENT else randomization_test(a, b)


def randomization_test(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, rounds: int = 100_000, seed: int = 0
) -> float:
    """Paired randomisation test: p of a mean difference this large, either way, if a and b were interchangeable.

    Values of the same queries in the same order. Each round exchanges the two values of random queries; with few
    queries that differ, every exchange is tried instead and the p is exact.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"a and b must be values of the same queries, got shapes {a.shape} and {b.shape}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    differences = (a - b)[a != b]
    observed = abs(differences.sum()) * (1 - 1e-12)  # another order of summation is no smaller difference
    if len(differences) <= EXACT_UP_TO:
        patterns = np.arange(2 ** len(differences))[:, None] >> np.arange(len(differences)) & 1
        return float(np.mean(np.abs((2.0 * patterns - 1) @ differences) >= observed))
    rng = np.random.default_rng(seed)
    as_large = 0
    for start in range(0, rounds, 1000):
        flips = rng.integers(2, size=(min(1000, rounds - start), len(differences)), dtype=np.int8)
        as_large += int(np.sum(np.abs((2.0 * flips - 1) @ differences) >= observed))
    return (as_large + 1) / (rounds + 1)


def confidence_interval(values: Sequence[float] | np.ndarray, rounds: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Between which the mean lies in 95% of as many queries, drawn with replacement from these (bootstrap)."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values must be those of some queries, got shape {values.shape}")
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(rounds)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
