"""Where texts lie: a sample of the embeddings of both sides, in two dimensions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe_retrieval.analysis.domains import Domains
from moe_retrieval.analysis.observation import SIDES, Observation, Side
from moe_retrieval.data import Collection
from moe_retrieval.progress import Meter
from moe_retrieval.retrieval.snippet import snippet

MOST: dict[Side, int] = {"query": 300, "document": 1200}
"""Texts of each side that are drawn: more would cover each other"""

SIZE = 90
"""Characters of a text that are told"""

PERPLEXITY = 30.0
"""About how many texts count as near by, for t-SNE"""

LEAST = 8
"""Texts below which t-SNE says nothing"""


def describe_map(
    collection: Collection,
    split: str,
    candidates: Sequence[int],
    sides: Mapping[Side, Observation],
    domains: Domains,
) -> dict[str, Any]:
    """Arrays over the texts of a sample: queries, then documents."""
    drawn = {side: _draw(len(sides[side].embeddings_NH), MOST[side]) for side in SIDES}
    queries, documents = list(collection.queries(split).items()), collection.documents
    texts = [queries[place] for place in drawn["query"]]
    texts += [documents[candidates[place]] for place in drawn["document"]]
    numbers = {"query": domains.queries_Q, "document": domains.documents_N}
    embeddings_NH = np.concatenate([sides[side].embeddings_NH[drawn[side]] for side in SIDES])
    with Meter("map"):
        return {
            "side": [side for side in SIDES for _ in drawn[side]],
            "id": [name for name, _ in texts],
            "text": [snippet(text, "", SIZE) for _, text in texts],
            "domain": [domains.names[number] for side in SIDES for number in numbers[side][drawn[side]].tolist()],
            "expert": {
                layer: [int(number) for side in SIDES for number in sides[side].layers[layer].expert_N[drawn[side]]]
                for layer in sides["query"].layers
            },
            "pca": _as_xy(principal_components(embeddings_NH)),
            "tsne": _as_xy(neighbour_embedding(embeddings_NH)),
        }


def _draw(count: int, most: int) -> np.ndarray:
    """Places, ascending; the same ones in every run."""
    return np.sort(np.random.default_rng(0).choice(count, min(count, most), replace=False))


def principal_components(x_NH: np.ndarray) -> np.ndarray:
    """[N, 2], along the two directions in which the rows differ most; the largest weight of each is above 0."""
    centred_NH = x_NH.astype(np.float64) - x_NH.mean(0, dtype=np.float64)
    directions_2H = np.linalg.svd(centred_NH, full_matrices=False)[2][:2]
    largest_2 = np.abs(directions_2H).argmax(1)
    signs_2 = np.where(directions_2H[np.arange(len(directions_2H)), largest_2] < 0, -1.0, 1.0)
    found_N2 = np.zeros((len(x_NH), 2))
    found_N2[:, : len(directions_2H)] = centred_NH @ (directions_2H * signs_2[:, None]).T
    return found_N2


def neighbour_embedding(x_NH: np.ndarray) -> np.ndarray | None:
    """[N, 2] by t-SNE, which keeps near what was near; None where it cannot be made."""
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        return None
    if len(np.unique(x_NH, axis=0)) < LEAST:
        return None
    perplexity = min(PERPLEXITY, (len(x_NH) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(x_NH)


def _as_xy(places_N2: np.ndarray | None) -> dict[str, list[float]] | None:
    if places_N2 is None:
        return None
    x_N, y_N = places_N2.astype(np.float64).round(4).T.tolist()
    return {"x": x_N, "y": y_N}
