"""How near questions are to what answers them, and to what answers others: the cosines of some, each with each."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_retrieval.analysis.domains import Domains
from moe_retrieval.data import Collection
from moe_retrieval.retrieval.snippet import snippet

MOST = 30
"""Queries: more have no room in a picture"""

SIZE = 90
"""Characters of a text that are told"""


def describe_nearness(
    collection: Collection,
    split: str,
    candidates: Sequence[int],
    embeddings: Sequence[np.ndarray],
    domains: Domains,
) -> dict[str, Any]:
    """Queries spread evenly, those of one domain side by side, each with the document that answers it best.

    `embeddings` are those of the queries and of the candidates.
    """
    queries_QH, documents_NH = embeddings
    names = list(collection.qrels(split))
    answers = _answers(collection, split, candidates)
    asked = [place for place, name in enumerate(names) if name in answers]
    asked = [asked[number] for number in np.unique(np.linspace(0, len(asked) - 1, min(MOST, len(asked))).astype(int))]
    asked.sort(key=lambda place: int(domains.queries_Q[place]))
    found = [answers[names[place]] for place in asked]
    texts = [collection.documents[candidates[place]] for place in found]
    domain = [domains.names[int(domains.queries_Q[place])] for place in asked]
    return {
        "queries": _told([(names[place], collection.all_queries[names[place]]) for place in asked], domain),
        "documents": _told(texts, [domains.names[int(domains.documents_N[place])] for place in found]),
        "cosines": (_unit(queries_QH[asked]) @ _unit(documents_NH[found]).T).round(4).tolist(),
    }


def _answers(collection: Collection, split: str, candidates: Sequence[int]) -> dict[str, int]:
    """Query -> the place, among the candidates, of the document that answers it best; no query without one."""
    answers = {}
    for query, judged in collection.qrels(split).items():
        for document, score in sorted(judged.items(), key=lambda item: -item[1]):
            row = collection.documents.row(document) if score > 0 else None
            if row is not None:
                answers[query] = bisect_left(candidates, row)  # they ascend, and none that answers is left out
                break
    return answers


def _told(texts: list[tuple[str, str]], domain: list[str]) -> list[dict[str, str]]:
    return [{"id": name, "text": snippet(text, "", SIZE), "domain": each} for (name, text), each in zip(texts, domain)]


def _unit(x_NH: np.ndarray) -> np.ndarray:
    x_NH = x_NH.astype(np.float64)
    return x_NH / np.maximum(np.linalg.norm(x_NH, axis=1, keepdims=True), 1e-12)
