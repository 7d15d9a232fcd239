"""One query end to end: tokenised, encoded, and its ten nearest of a corpus found exactly, each library's own way."""

from collections.abc import Sequence

import numpy as np
import torch

from bench.contenders import our_model, sentence_transformers, transformers
from bench.contenders.embedding import NEAREST, Embed, Search
from bench.harness.record import OURS

MAKERS = {OURS: our_model, "transformers": transformers, "sentence-transformers": sentence_transformers}
CORPUS = 5183
"""Documents that a query is compared with: as many as SciFact has."""


def vectors(width: int) -> np.ndarray:
    """A corpus of embeddings: what an exact search costs does not depend on their values."""
    made = np.random.default_rng(0).standard_normal((CORPUS, width), dtype=np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def searches(found: dict[str, Embed], vectors_NH: np.ndarray, device: torch.device) -> dict[str, Search]:
    return {name: MAKERS[name.split()[0]].search(embed, vectors_NH, device) for name, embed in found.items()}


def check(found: dict[str, Search], embedders: dict[str, Embed], vectors_NH: np.ndarray, asked: Sequence[str]) -> None:
    """Raises AssertionError where a contender does not find what is nearest to its own embedding."""
    for name, search in found.items():
        embedding = embedders[name](asked[:1], True)
        best = np.argsort(-(embedding @ vectors_NH.T), kind="stable")[:, :NEAREST]
        assert len(set(best[0]) & set(search(asked[:1])[0])) >= NEAREST - 1, f"{name}: not the nearest documents"
