"""One query end to end: tokenised, encoded, and its ten nearest of a corpus found exactly, each library's own way."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from bench.embedders import Embed

NEAREST = 10
CORPUS = 5183
"""Documents that a query is compared with: as many as SciFact has."""

Search = Callable[[Sequence[str]], list[list[int]]]
"""Texts to the rows of the nearest documents."""


def vectors(width: int) -> np.ndarray:
    """A corpus of embeddings: what an exact search costs does not depend on their values."""
    made = np.random.default_rng(0).standard_normal((CORPUS, width), dtype=np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def searches(found: dict[str, Embed], vectors_NH: np.ndarray, device: torch.device) -> dict[str, Search]:
    return {name: _search(name, embed, vectors_NH, device) for name, embed in found.items()}


def check(found: dict[str, Search], embedders: dict[str, Embed], vectors_NH: np.ndarray, asked: Sequence[str]) -> None:
    """Raises AssertionError where a contender does not find what is nearest to its own embedding."""
    for name, search in found.items():
        embedding = embedders[name](asked[:1], True)
        best = np.argsort(-(embedding @ vectors_NH.T), kind="stable")[:, :NEAREST]
        assert len(set(best[0]) & set(search(asked[:1])[0])) >= NEAREST - 1, f"{name}: not the nearest documents"


def _search(name: str, embed: Embed, vectors_NH: np.ndarray, device: torch.device) -> Search:
    if name.startswith("sentence-transformers"):
        from sentence_transformers.util import semantic_search

        corpus = torch.from_numpy(vectors_NH).to(device)

        def search(asked: Sequence[str]) -> list[list[int]]:
            hits = semantic_search(torch.from_numpy(embed(asked, True)).to(device), corpus, top_k=NEAREST)
            return [[hit["corpus_id"] for hit in row] for row in hits]

        return search
    if name.startswith("transformers"):
        corpus = torch.from_numpy(vectors_NH).to(device)
        return lambda asked: (torch.from_numpy(embed(asked, True)).to(device) @ corpus.T).topk(NEAREST).indices.tolist()

    from moe_retrieval.exact import nearest

    return lambda asked: nearest(embed(asked, True), vectors_NH, NEAREST, device=device)[1].tolist()
