"""Which part of a collection a text is from: by the metadata of the documents, and of the documents that answer."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moe_retrieval.data.collection import Collection
from moe_retrieval.progress import Meter

MOST = 30
"""Domains that are told apart: a table of more is read by nobody"""

NONE, OTHERS = "(none)", "(others)"


class Domains(NamedTuple):
    names: list[str]
    """The one with most documents first; a single one where no document names any."""
    documents_N: Tensor
    """The number of its domain for each of the ranked documents, in their order"""
    queries_Q: Tensor
    """The same for each query of the split: of the document that answers it best"""

    @property
    def are_told_apart(self) -> bool:
        return len(self.names) > 1


def find_domains(collection: Collection, split: str, candidates: Sequence[int]) -> Domains:
    with Meter("domains", len(candidates), "documents") as meter:
        of_documents = [collection.documents.domain(row) or NONE for row in meter.over(candidates)]
    of_queries = [_of_query(collection, judged) for judged in collection.qrels(split).values()]
    counts = Counter(of_documents)
    counts.update(dict.fromkeys(of_queries, 0))
    names = [name for name, _ in counts.most_common()]
    kept = names if len(names) <= MOST else [*names[: MOST - 1], OTHERS]
    numbers = {name: number for number, name in enumerate(kept)}
    documents_N, queries_Q = (
        torch.tensor([numbers.get(name, len(kept) - 1) for name in found], dtype=torch.int64)
        for found in (of_documents, of_queries)
    )
    return Domains(kept, documents_N, queries_Q)


def _of_query(collection: Collection, judged: dict[str, int]) -> str:
    for document, score in sorted(judged.items(), key=lambda item: -item[1]):
        row = collection.documents.row(document)
        if score > 0 and row is not None:
            return collection.documents.domain(row) or NONE
    return NONE
