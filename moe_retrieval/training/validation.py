"""NDCG@10 on held-out queries over a fixed part of the corpus: which step was the best, not how good the model is."""

import logging
from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from moe_retrieval.data.collection import Collection
from moe_retrieval.errors import InputError
from moe_retrieval.models.encoder import pack
from moe_retrieval.models.precision import PRECISIONS, autocast
from moe_retrieval.models.retriever import Retriever
from moe_retrieval.models.tokenizer import Tokenizer
from moe_retrieval.training.distributed import World, gather_rows, share_number
from moe_retrieval.training.pairs import TrainingPairs

MOST_QUERIES = 300
MOST_DOCUMENTS = 1000
LEAST_QUERIES = 20
"""One query that changes places moves the mean of 20 by 0.05 at most, which is what steps differ by; of 3, by 0.33."""
HELD_OUT = 0.1
TOKENS = 8192
"""A batch."""
CUT = 10

log = logging.getLogger("moe_retrieval")


def by_hash(names: Mapping[str, object]) -> list[str]:
    """In an order that is random and always the same."""
    return sorted(names, key=lambda name: blake2b(name.encode(), digest_size=8).digest())


def split_off(collection: Collection, pairs: TrainingPairs) -> tuple[str, list[str], np.ndarray]:
    """-> the split and the queries to validate on, and the rows of the pairs that are left to train on.

    The data's dev split if it has enough queries, else a tenth of the training queries.
    """
    everything = np.arange(len(pairs))
    for split in ("dev", "validation", "valid"):
        queries = _answered(collection, split) if split in collection.splits else []
        if len(queries) >= LEAST_QUERIES:
            return split, queries[:MOST_QUERIES], everything
        if queries:
            log.warning(
                "the split %s of %s has %d queries with an answer, too few to choose a step by (%d)",
                split, collection.name, len(queries), LEAST_QUERIES,
            )  # fmt: skip
    queries = _answered(collection, "train")
    held_out = queries[: min(MOST_QUERIES, int(HELD_OUT * len(queries)))]
    if len(held_out) < LEAST_QUERIES:
        return "train", [], everything
    names = set(held_out)
    left = [row for row, (query_id, _, _) in enumerate(pairs.pairs) if query_id not in names]
    return "train", held_out, np.array(left)


def of_queries(pairs: TrainingPairs, rows: np.ndarray, number: int) -> np.ndarray:
    """The rows of so many queries: always the same ones, and of fewer queries a part of those of more."""
    names = by_hash({pairs.pairs[row][0]: None for row in rows})
    if len(names) < number:
        raise InputError(f"--train-queries {number}: {pairs.collection.name} has {len(names)} queries to train on")
    chosen = set(names[:number])
    return np.array([row for row in rows if pairs.pairs[row][0] in chosen])


def _answered(collection: Collection, split: str) -> list[str]:
    """The queries of a split that have a score other than 0 to reach."""
    judged = collection.qrels(split).items()
    return by_hash({query: answers for query, answers in judged if max(answers.values()) > 0})


class Validator:
    """Token ids of queries and documents of one collection, made once."""

    def __init__(
        self, collection: Collection, split: str, queries: list[str], tokenizer: Tokenizer, retriever: Retriever
    ):
        self.name, self.split = collection.name, split
        usage = retriever.settings.usage
        qrels = collection.qrels(split)
        documents = collection.documents
        answers = {row for query in queries for name in qrels[query] if (row := documents.row(name)) is not None}
        others = np.random.default_rng(0).permutation(len(documents))
        rows = sorted(answers) + [int(row) for row in others[:MOST_DOCUMENTS] if int(row) not in answers]
        rows = rows[: max(MOST_DOCUMENTS, len(answers))]
        column = {documents[row][0]: place for place, row in enumerate(rows)}
        texts = [usage.query_prompt + collection.all_queries[query] for query in queries]
        self.queries = tokenizer.encode_batch(texts, usage.query_length)
        texts = [usage.doc_prompt + documents[row][1] for row in rows]
        self.documents = tokenizer.encode_batch(texts, usage.doc_length)
        self.gains_QD = torch.zeros(len(queries), len(rows), dtype=torch.float64)
        for place, query in enumerate(queries):
            for name, relevance in qrels[query].items():
                if name in column:
                    self.gains_QD[place, column[name]] = max(relevance, 0)

    def score(self, retriever: Retriever, world: World, precision: str) -> float:
        """NDCG@10, or NaN if an embedding is not finite; every rank embeds its share, and all have the result."""
        was_training = retriever.training
        retriever.eval()
        retriever.freeze(PRECISIONS[precision])
        try:
            with torch.no_grad():
                queries_QH = self._embed(retriever, self.queries, world, precision)
                documents_DH = self._embed(retriever, self.documents, world, precision)
        finally:
            retriever.thaw()
            retriever.train(was_training)
        if not (queries_QH.isfinite().all() and documents_DH.isfinite().all()):
            return float("nan")
        ranking_QK = (queries_QH @ documents_DH.T).topk(min(CUT, len(self.documents))).indices.cpu()
        return ndcg(self.gains_QD, ranking_QK)

    def _embed(self, retriever: Retriever, texts: list[list[int]], world: World, precision: str) -> Tensor:
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        own = order[world.rank :: world.size]
        parts = []
        start = 0
        while start < len(own):
            stop = start + 1
            while stop < len(own) and (stop + 1 - start) * len(texts[own[stop]]) <= TOKENS:
                stop += 1
            with autocast(world.device, precision):
                parts.append(retriever(*pack([texts[row] for row in own[start:stop]], world.device)).float())
            start = stop
        rows_PH = torch.cat(parts) if parts else torch.zeros(0, retriever.settings.embedding_size, device=world.device)
        gathered = gather_rows(rows_PH, world.share(len(texts)))
        places = torch.tensor([place for rank in range(world.size) for place in order[rank :: world.size]])
        return torch.empty_like(gathered).index_copy(0, places.to(world.device), gathered)


class Validation:
    """Of several collections, the mean of their scores: however many queries each has, it counts as much."""

    def __init__(self, validators: Sequence[Validator]):
        self.validators = validators
        self.scores: dict[str, float] = {}
        """Of the last time, by collection"""

    def __bool__(self) -> bool:
        return bool(self.validators)

    def score(self, retriever: Retriever, world: World, precision: str) -> float:
        """On every rank what rank 0 has."""
        self.scores = {
            validator.name: share_number(validator.score(retriever, world, precision)) for validator in self.validators
        }
        return sum(self.scores.values()) / len(self.scores)

    def told(self) -> str:
        """Of what the last score is, and where it is a mean, of what."""
        if len(self.validators) == 1:
            return self.validators[0].split
        each = (f"{one.name} {one.split} {self.scores[one.name]:.4f}" for one in self.validators)
        return f"average ({', '.join(each)})"


def ndcg(gains_QD: Tensor, ranking_QK: Tensor) -> float:
    """The mean over queries of DCG / ideal DCG, both cut at the width of the ranking."""
    discounts = 1 / torch.arange(2, ranking_QK.shape[1] + 2, dtype=gains_QD.dtype).log2()
    reached_Q = (gains_QD.gather(1, ranking_QK) * discounts).sum(1)
    ideal_Q = (gains_QD.topk(ranking_QK.shape[1]).values * discounts).sum(1)
    return (reached_Q / ideal_Q.clamp(min=1e-9)).mean().item()
