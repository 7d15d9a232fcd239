"""A collection: documents, and for each split the queries and which documents answer them."""

from dataclasses import dataclass, field

from moe_retrieval.data.records import Documents
from moe_retrieval.errors import InputError

Qrels = dict[str, dict[str, int]]
"""query id -> document id -> how relevant it is: 0 is judged and not relevant"""


@dataclass(frozen=True)
class Collection:
    name: str
    documents: Documents
    all_queries: dict[str, str]
    """query id -> text, of every split"""
    all_qrels: dict[str, Qrels]
    """split -> its qrels"""
    fingerprint: str
    """16 hex digits that change with any document, query or judgement"""
    given_negatives: dict[str, list[str]] = field(default_factory=dict)
    """query id -> documents that the data itself calls wrong answers"""

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.all_qrels)

    @property
    def held_out(self) -> str | None:
        """The split to measure on, if there is one."""
        return next((name for name in ("test", "dev") if name in self.splits), None)

    def qrels(self, split: str) -> Qrels:
        if split not in self.all_qrels:
            raise InputError(f"{self.name} has no split {split!r}; it has {', '.join(self.splits) or 'none at all'}")
        return self.all_qrels[split]

    def queries(self, split: str) -> dict[str, str]:
        return {query_id: self.all_queries[query_id] for query_id in self.qrels(split)}
