"""Hard negatives: where the documents come from that look as if they answered a query."""

import logging
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from moe_retrieval.data.collection import Collection
from moe_retrieval.errors import InputError
from moe_retrieval.progress import Meter
from moe_retrieval.retrieval.bm25 import BM25
from moe_retrieval.retrieval.embedder import Embedder
from moe_retrieval.retrieval.encode import encode_texts
from moe_retrieval.retrieval.exact import nearest
from moe_retrieval.training.pairs import TrainingPairs, judged_pairs

log = logging.getLogger("moe_retrieval")

Source = Literal["in-batch", "bm25", "mined"]
SOURCES = get_args(Source)


@dataclass(frozen=True)
class HardNegatives:
    """Which hard negatives, and how many a pair.

    in-batch    those that the data names, if it names any (0: as many as every query has)
    bm25        the documents that BM25 ranks highest, down to `depth`
    mined       those that a model ranks highest, down to `depth`, leaving out what comes closer to the query than
                `margin` below the pair's own score: it may well be an answer that was never judged
    """

    source: Source = "in-batch"
    number: int = 0
    depth: int = 100
    margin: float = 0.05

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise InputError(f"negatives must be one of {', '.join(SOURCES)}; got {self.source!r}")
        least = 0 if self.source == "in-batch" else 1
        if self.number < least:
            raise InputError(f"num_negatives must be at least {least} with {self.source} negatives, got {self.number}")


def training_pairs(
    collection: Collection,
    wanted: HardNegatives | None = None,
    *,
    split: str = "train",
    model: Embedder | None = None,
    labelled: bool = False,
    seed: int = 0,
    shard: bool = False,
) -> TrainingPairs:
    """The judged pairs of a split, each with as many hard negatives, none of which is judged relevant.

    Where there are too few, random documents fill up. `model` is for mined negatives. `labelled` adds the pairs judged
    not relevant, with label 0. With `shard`, the ranks mine together.
    """
    wanted = wanted or HardNegatives()
    if wanted.source == "mined" and model is None:
        raise InputError("mined negatives need a model")
    pairs = judged_pairs(collection, split, labelled)
    relevant = _relevant_rows(collection, split)
    number = wanted.number
    if wanted.source == "in-batch":
        candidates = _given(collection, pairs)
        if number == 0:
            number = min(map(len, candidates))
        elif not any(map(len, candidates)):
            raise InputError(f"{collection.name} names no negatives: num_negatives needs bm25 or mined negatives")
    elif wanted.source == "bm25":
        candidates = _from_bm25(collection, pairs, relevant, wanted)
    else:
        candidates = _from_model(collection, pairs, relevant, wanted, model, shard)
    chosen = _choose(candidates, pairs, relevant, number, len(collection.documents), seed)
    return TrainingPairs(collection, pairs, chosen)


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


def _from_bm25(collection, pairs, relevant, wanted) -> list[list[int]]:
    queries = list(dict.fromkeys(query_id for query_id, _, _ in pairs))
    ranked = {}
    with Meter("BM25 negatives", len(queries), "queries") as meter:
        index = BM25(collection.documents.texts)
        for query_id in queries:
            ((_, rows),) = index.search([collection.all_queries[query_id]], wanted.depth)
            ranked[query_id] = [int(row) for row in rows if int(row) not in relevant[query_id]][: wanted.number]
            meter.advance()
    return [ranked[query_id] for query_id, _, _ in pairs]


def _from_model(collection, pairs, relevant, wanted, model, shard) -> list[list[int]]:
    queries = list(dict.fromkeys(query_id for query_id, _, _ in pairs))
    place = {query_id: i for i, query_id in enumerate(queries)}
    documents = encode_texts(model, collection.documents.texts, "document", shard=shard, progress="mining: documents")
    asked = [collection.all_queries[query_id] for query_id in queries]
    encoded = encode_texts(model, asked, "query", shard=shard, progress="mining: queries")
    with Meter("mining: ranking"):
        scores, rows = nearest(encoded, documents, wanted.depth, shard=shard, device=model.device)
    candidates = []
    for query_id, positive, _ in pairs:
        i = place[query_id]
        highest = float(encoded[i] @ documents[positive]) - wanted.margin
        allowed = (int(row) for score, row in zip(scores[i], rows[i]) if score <= highest)
        candidates.append([row for row in allowed if row not in relevant[query_id]][: wanted.number])
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
