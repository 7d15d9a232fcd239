"""Training pairs: a query, a document that answers it, and documents that look as if they did."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from moe_retrieval.bm25 import BM25
from moe_retrieval.data.collection import Collection
from moe_retrieval.encode import encode_texts
from moe_retrieval.errors import InputError
from moe_retrieval.exact import nearest

log = logging.getLogger("moe_retrieval")

SOURCES = ("in-batch", "bm25", "mined")


class Example(NamedTuple):
    query_text: str
    positive_id: str
    positive_text: str
    negative_ids: tuple[str, ...]
    negative_texts: tuple[str, ...]
    query_id: str
    label: int = 1
    """0 if the "positive" is judged not relevant: only in labelled pairs"""


class TrainingPairs(Sequence):
    """One example a judgement; texts are read when an example is asked for. All have as many negatives."""

    def __init__(self, collection: Collection, pairs: list[tuple[str, int, int]], negatives_NM: np.ndarray):
        """pairs: query id, row of the document, label"""
        self.collection, self.pairs, self.negatives_NM = collection, pairs, negatives_NM

    @property
    def num_negatives(self) -> int:
        return self.negatives_NM.shape[1]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        query_id, row, label = self.pairs[place]
        documents = self.collection.documents
        positive_id, positive_text = documents[row]
        negatives = [documents[int(other)] for other in self.negatives_NM[place]]
        return Example(
            self.collection.all_queries[query_id],
            positive_id,
            positive_text,
            tuple(name for name, _ in negatives),
            tuple(text for _, text in negatives),
            query_id,
            label,
        )


def training_pairs(
    collection: Collection,
    negatives: str = "in-batch",
    num_negatives: int = 0,
    *,
    split: str = "train",
    model: Any = None,
    labelled: bool = False,
    depth: int = 100,
    margin: float = 0.05,
    seed: int = 0,
    shard: bool = False,
) -> TrainingPairs:
    """The judged pairs of a split, each with `num_negatives` hard negatives, none of which is judged relevant.

    in-batch    those that the data names, if it names any (0: as many as every query has)
    bm25        the documents that BM25 ranks highest, down to `depth`
    mined       those that `model` ranks highest, leaving out what comes closer to the query than `margin` below the
                pair's own score: it may well be an answer that nobody judged

    Where there are too few, random documents fill up. `labelled` adds the pairs judged not relevant, with label 0.
    With `shard`, the ranks mine together.
    """
    if negatives not in SOURCES:
        raise InputError(f"negatives must be one of {', '.join(SOURCES)}; got {negatives!r}")
    if num_negatives < 0 or (num_negatives == 0 and negatives != "in-batch"):
        least = 0 if negatives == "in-batch" else 1
        raise InputError(f"num_negatives must be at least {least} with {negatives} negatives, got {num_negatives}")
    if negatives == "mined" and model is None:
        raise InputError("mined negatives need a model")
    pairs = _judged_pairs(collection, split, labelled)
    relevant = _relevant_rows(collection, split)
    if negatives == "in-batch":
        candidates = _given(collection, pairs)
        if num_negatives == 0:
            num_negatives = min(map(len, candidates))
        elif not any(map(len, candidates)):
            raise InputError(f"{collection.name} names no negatives: num_negatives needs bm25 or mined negatives")
    elif negatives == "bm25":
        candidates = _from_bm25(collection, pairs, relevant, num_negatives, depth)
    else:
        candidates = _from_model(collection, pairs, relevant, num_negatives, depth, margin, model, shard)
    chosen = _choose(candidates, pairs, relevant, num_negatives, len(collection.documents), seed)
    return TrainingPairs(collection, pairs, chosen)


def _judged_pairs(collection: Collection, split: str, labelled: bool) -> list[tuple[str, int, int]]:
    pairs = []
    for query_id, judged in collection.qrels(split).items():
        for document_id, relevance in judged.items():
            row = collection.documents.row(document_id)
            if row is not None and (relevance > 0 or labelled):
                pairs.append((query_id, row, int(relevance > 0)))
    if not pairs:
        raise InputError(f"the split {split} of {collection.name} has no pair to train on")
    return pairs


def _relevant_rows(collection: Collection, split: str) -> dict[str, set[int]]:
    rows = {}
    for query_id, judged in collection.qrels(split).items():
        found = (collection.documents.row(document_id) for document_id, score in judged.items() if score > 0)
        rows[query_id] = {row for row in found if row is not None}
    return rows


def _given(collection: Collection, pairs: list[tuple[str, int, int]]) -> list[list[int]]:
    rows: dict[str, list[int]] = {}
    for query_id, names in collection.given_negatives.items():
        found = (collection.documents.row(name) for name in names)
        rows[query_id] = [row for row in found if row is not None]
    return [rows.get(query_id, []) for query_id, _, _ in pairs]


def _from_bm25(collection, pairs, relevant, num_negatives, depth) -> list[list[int]]:
    queries = list(dict.fromkeys(query_id for query_id, _, _ in pairs))
    index = BM25(collection.documents.texts)
    ranked = {}
    for query_id in queries:
        ((_, rows),) = index.search([collection.all_queries[query_id]], depth)
        ranked[query_id] = [int(row) for row in rows if int(row) not in relevant[query_id]][:num_negatives]
    return [ranked[query_id] for query_id, _, _ in pairs]


def _from_model(collection, pairs, relevant, num_negatives, depth, margin, model, shard) -> list[list[int]]:
    queries = list(dict.fromkeys(query_id for query_id, _, _ in pairs))
    place = {query_id: i for i, query_id in enumerate(queries)}
    documents = encode_texts(model, collection.documents.texts, "document", shard=shard, progress="mining: documents")
    asked = [collection.all_queries[query_id] for query_id in queries]
    encoded = encode_texts(model, asked, "query", shard=shard, progress="mining: queries")
    scores, rows = nearest(encoded, documents, depth, shard=shard, device=getattr(model, "device", "cpu"))
    candidates = []
    for query_id, positive, _ in pairs:
        i = place[query_id]
        highest = float(encoded[i] @ documents[positive]) - margin
        allowed = (int(row) for score, row in zip(scores[i], rows[i]) if score <= highest)
        candidates.append([row for row in allowed if row not in relevant[query_id]][:num_negatives])
    return candidates


def _choose(candidates, pairs, relevant, num_negatives, num_documents, seed) -> np.ndarray:
    """The first `num_negatives` candidates of each pair; random documents where there are fewer."""
    chosen = np.empty((len(pairs), num_negatives), dtype=np.int64)
    rng = np.random.default_rng([seed, 1])
    filled = 0
    for place, (query_id, row, _) in enumerate(pairs):
        taken = [other for other in candidates[place] if other != row][:num_negatives]
        excluded = relevant[query_id] | {row}
        filled += num_negatives - len(taken)
        if num_documents - len(excluded.union(taken)) < num_negatives - len(taken):
            raise InputError(
                f"{num_documents} documents are too few for {num_negatives} negatives of query {query_id!r}"
            )
        while len(taken) < num_negatives:
            other = int(rng.integers(num_documents))
            if other not in excluded and other not in taken:
                taken.append(other)
        chosen[place] = taken
    if filled:
        log.warning("%d of %d hard negatives are random documents: there were too few others", filled, chosen.size)
    return chosen
