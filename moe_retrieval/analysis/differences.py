"""Query by query: what a model gains and loses against another, with the texts."""

import math
from typing import Any

import numpy as np

from moe_retrieval.data import Collection
from moe_retrieval.evaluation.runs import Run, ranking
from moe_retrieval.retrieval.snippet import snippet

MOST = 20
"""Queries that are told each way"""

SIZE = 300
"""Characters of a document that are told"""


def describe_differences(
    collection: Collection, split: str, runs: tuple[Run, Run], ndcg: tuple[np.ndarray, np.ndarray]
) -> dict[str, list[dict[str, Any]]]:
    """-> "gains" and "losses", the largest first. `runs` and `ndcg` are the model's own and the other's; the latter of
    each query, in the order of the qrels."""
    own_Q, other_Q = ndcg
    difference_Q = own_Q - other_Q
    order = np.argsort(-difference_Q, kind="stable")
    gained, lost = order[difference_Q[order] > 0][:MOST], order[::-1][difference_Q[order[::-1]] < 0][:MOST]

    def rows(places: np.ndarray) -> list[dict[str, Any]]:
        names = list(collection.qrels(split))
        return [
            {
                "query": names[place],
                "text": collection.all_queries[names[place]],
                "ndcg_at_10": float(own_Q[place]),
                "against": float(other_Q[place]),
                "difference": float(difference_Q[place]),
                **_documents(collection, split, names[place], runs),
            }
            for place in places.tolist()
        ]

    return {"gains": rows(gained), "losses": rows(lost)}


def _documents(collection: Collection, split: str, query: str, runs: tuple[Run, Run]) -> dict[str, Any]:
    """The first of each ranking, and the relevant document that either has highest, with its rank in both."""
    own, other = ({name: rank for rank, (name, _) in enumerate(ranking(run.get(query, {})), 1)} for run in runs)
    judged = collection.qrels(split)[query]
    relevant = [name for name, score in judged.items() if score > 0]
    best = min(relevant, key=lambda name: min(own.get(name, math.inf), other.get(name, math.inf)), default=None)
    found = {"top": next(iter(own), None), "against_top": next(iter(other), None), "relevant": best}
    told = {key: _told(collection, name, query) for key, name in found.items()}
    ranks = {"rank": own, "against_rank": other}
    return told | {key: None if best is None else places.get(best) for key, places in ranks.items()}


def _told(collection: Collection, name: str | None, query: str) -> dict[str, str] | None:
    row = None if name is None else collection.documents.row(name)
    if name is None or row is None:
        return None
    return {"id": name, "text": snippet(collection.documents.text(row), collection.all_queries[query], SIZE)}
