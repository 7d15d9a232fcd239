"""What becomes of the ranking when one expert is removed, and its tokens go to the next best.

After the pooling that needs the pooled layer alone again, on what went into it; inside the encoder every text is
encoded again for each expert.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from kernels.layers import RoutedLayer
from kernels.sums import RouterSums
from moe_retrieval.analysis.observation import Observation
from moe_retrieval.data import Collection
from moe_retrieval.evaluation.metrics import evaluate_run
from moe_retrieval.evaluation.ranking import embeddings_run, model_run
from moe_retrieval.evaluation.runs import Run
from moe_retrieval.evaluation.significance import p_of_difference
from moe_retrieval.evaluation.table import TESTED
from moe_retrieval.models.precision import autocast
from moe_retrieval.models.retriever import Retriever
from moe_retrieval.progress import Meter
from moe_retrieval.retrieval.model import Model

SLICE = 16384
"""Texts that go through the pooled layer together"""


class Ranked(NamedTuple):
    """What is ranked, and both sides as they were observed."""

    collection: Collection
    split: str
    setting: str
    queries: Observation
    documents: Observation


def describe_removals(model: Model, ranked: Ranked, experts: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """A row for each of these (layer, expert): NDCG@10 without it, and how that differs from the whole model's."""
    before_Q = _ndcg(ranked, _ranking(model, ranked, again=False))
    rows = []
    with Meter("without each expert", len(experts), "experts") as meter:
        for layer, expert in experts:
            with removed(model.retriever, layer, expert):
                ndcg_Q = _ndcg(ranked, _ranking(model, ranked, again=True))
            rows.append(
                {
                    "layer": layer,
                    "expert": expert,
                    "share": _share(ranked.documents, layer, expert),
                    "ndcg_at_10": float(ndcg_Q.mean()),
                    "difference": float((ndcg_Q - before_Q).mean()),
                    "queries_changed": int(np.count_nonzero(ndcg_Q != before_Q)),
                    "p": p_of_difference(ndcg_Q, before_Q),
                }
            )
            meter.advance()
    return rows


def removable(retriever: Retriever, documents: Observation) -> list[tuple[str, int]]:
    """(layer, expert) of every expert that has another in its place, those with the greatest share first."""
    experts = [
        (name, expert)
        for name, layer in retriever.expert_layers().items()
        if isinstance(layer, RoutedLayer) and layer.num_experts > 1
        for expert in range(layer.num_experts)
    ]
    return sorted(experts, key=lambda each: -_share(documents, *each))


@contextmanager
def removed(retriever: Retriever, name: str, expert: int) -> Iterator[None]:
    """The layer of this name is without the expert, while it lasts. The retriever runs by its modules from here on."""
    owner, _, field = name.rpartition(".")
    parent = retriever.get_submodule(owner)
    whole = getattr(parent, field)
    retriever.thaw()
    setattr(parent, field, without_expert(whole, expert))
    try:
        yield
    finally:
        setattr(parent, field, whole)


def without_expert(layer: RoutedLayer, expert: int) -> RoutedLayer:
    """What the layer would be if the router's score for this expert were minus infinity."""
    kept = [other for other in range(layer.num_experts) if other != expert]
    smaller = deepcopy(layer)
    smaller.num_experts, smaller.sums = len(kept), RouterSums(len(kept))
    smaller.top_k = layer.top_k if layer.top_k == "all" else min(int(layer.top_k), len(kept))
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        if not name.startswith("router.hidden."):  # all others have a row for each expert
            owner, _, field = name.rpartition(".")
            rows = tensor.detach()[kept]
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(smaller.get_submodule(owner), field, nn.Parameter(rows, False) if is_parameter else rows)
    return smaller


def _ranking(model: Model, ranked: Ranked, again: bool) -> Run:
    """By the model as it is now. What was observed is the whole model's ranking, if nothing is to be encoded again."""
    collection, split, setting, queries, documents = ranked
    if queries.pooled_NH is not None and documents.pooled_NH is not None:
        sides = [_after_pooling(model, side) for side in (queries.pooled_NH, documents.pooled_NH)]
    elif not again:
        sides = [queries.embeddings_NH, documents.embeddings_NH]
    else:
        return model_run(model, collection, split, setting, shard=False, progress=False)
    return embeddings_run(collection, split, setting, *sides, device=model.device)


def _after_pooling(model: Model, pooled_NH: np.ndarray) -> np.ndarray:
    """-> embeddings"""
    parts = []
    with torch.inference_mode(), autocast(model.device, model.precision):
        for start in range(0, len(pooled_NH), SLICE):
            x_PH = torch.from_numpy(pooled_NH[start : start + SLICE]).to(model.device)
            parts.append(model.retriever.finish(x_PH).float().cpu().numpy())
    return np.concatenate(parts)


def _ndcg(ranked: Ranked, run: Run) -> np.ndarray:
    return evaluate_run(ranked.collection.qrels(ranked.split), run, cuts=(10,)).per_query[TESTED]


def _share(documents: Observation, layer: str, expert: int) -> float:
    """Of what the layer does for documents, the expert's."""
    had_E = documents.layers[layer].share_DE.sum(0)
    return float(had_E[expert] / had_E.sum())
