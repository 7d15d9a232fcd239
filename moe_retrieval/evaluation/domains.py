"""Domains: the kinds of documents that a collection names in their metadata, like the packages of `docs`."""

from collections.abc import Mapping

import numpy as np

from moe_retrieval.data.collection import Collection


def domains_of(collection: Collection, split: str) -> dict[str, np.ndarray]:
    """Domain -> the places of its queries in the order of the qrels; the largest first, nothing where there is but one.

    A query is of the domain of the first document that answers it.
    """
    places: dict[str, list[int]] = {}
    for place, judged in enumerate(collection.qrels(split).values()):
        domain = _domain(collection, judged)
        if domain is not None:
            places.setdefault(domain, []).append(place)
    if len(places) < 2:
        return {}
    return {domain: np.array(places[domain]) for domain in sorted(places, key=lambda name: (-len(places[name]), name))}


def _domain(collection: Collection, judged: Mapping[str, int]) -> str | None:
    for document_id, relevance in judged.items():
        row = collection.documents.row(document_id) if relevance > 0 else None
        if row is not None:
            return collection.documents.domain(row)
    return None
