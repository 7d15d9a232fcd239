"""One query end to end: tokenised, encoded, and its ten nearest of a corpus found exactly, each library's own way."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from bench.contenders import our_model, sentence_transformers, transformers
from bench.contenders.embedding import NEAREST, Embed
from bench.harness.record import OURS
from bench.harness.timing import one_at_a_time

MAKERS = {OURS: our_model, "sentence-transformers": sentence_transformers}
"""The others embed alone, and leave the search to PyTorch."""
CORPUS = 5183
"""Documents that a query is compared with: as many as SciFact has."""


def searches(found: dict[str, Embed], asked: Sequence[str], device: torch.device) -> dict[str, Callable[[], object]]:
    """-> the next of `asked` alone, over and over: each contender has found what is nearest to its own embedding.

    What an exact search costs does not depend on the values of the corpus.
    """
    embeddings = {name: embed(asked[:1], True) for name, embed in found.items()}
    width = next(iter(embeddings.values())).shape[1]
    vectors_NH = np.random.default_rng(0).standard_normal((CORPUS, width), dtype=np.float32)
    vectors_NH /= np.linalg.norm(vectors_NH, axis=1, keepdims=True)
    ways = {
        name: MAKERS.get(name.split()[0], transformers).search(embed, vectors_NH, device)
        for name, embed in found.items()
    }
    for name, search in ways.items():
        best = np.argsort(-(embeddings[name] @ vectors_NH.T), kind="stable")[0, :NEAREST]
        assert len(set(best) & set(search(asked[:1])[0])) >= NEAREST - 1, f"{name}: not the nearest documents"
    return {name: one_at_a_time(search, asked) for name, search in ways.items()}
