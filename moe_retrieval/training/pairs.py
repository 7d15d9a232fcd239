"""Training pairs: a query, a document that answers it, and documents that look as if they did."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moe_retrieval.data.collection import Collection
from moe_retrieval.errors import InputError


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

    def with_negatives(self, number: int) -> "TrainingPairs":
        """The same with the first `number` negatives of each."""
        return TrainingPairs(self.collection, self.pairs, self.negatives_NM[:, :number])

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


def judged_pairs(collection: Collection, split: str, labelled: bool) -> list[tuple[str, int, int]]:
    """-> query id, row of the document, label: those judged relevant, and with `labelled` the others too."""
    pairs = []
    for query_id, judged in collection.qrels(split).items():
        for document_id, relevance in judged.items():
            row = collection.documents.row(document_id)
            if row is not None and (relevance > 0 or labelled):
                pairs.append((query_id, row, int(relevance > 0)))
    if not pairs:
        raise InputError(f"the split {split} of {collection.name} has no pair to train on")
    return pairs
