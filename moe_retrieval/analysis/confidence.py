"""Is a query ranked better where the gate is sure of it? By rank, over the queries."""

import math
from typing import Any

import numpy as np

BINS = 5
LEAST = 3
"""Queries: a rank correlation of fewer is 1 or -1, whatever they say"""


def describe_confidence(layer: str, confidence_Q: np.ndarray, ndcg_Q: np.ndarray) -> dict[str, Any]:
    """Spearman's rank correlation with its p (both None where one side is constant), and bins of as many queries."""
    correlation, p = rank_correlation(confidence_Q, ndcg_Q)
    return {
        "layer": layer,
        "queries": len(ndcg_Q),
        "spearman": correlation,
        "p": p,
        "bins": [
            {
                "queries": len(rows),
                "lowest": float(confidence_Q[rows].min()),
                "highest": float(confidence_Q[rows].max()),
                "ndcg_at_10": float(ndcg_Q[rows].mean()),
            }
            for rows in np.array_split(np.argsort(confidence_Q, kind="stable"), min(BINS, len(ndcg_Q)))
        ],
    }


def rank_correlation(a: np.ndarray, b: np.ndarray) -> tuple[float | None, float | None]:
    from scipy import stats

    if len(a) < LEAST or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None, None
    found = stats.spearmanr(a, b)
    p = float(found.pvalue)
    return float(found.statistic), p if math.isfinite(p) else None
