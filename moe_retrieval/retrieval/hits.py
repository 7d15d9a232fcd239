"""What a search finds: the best documents for each question."""

from collections.abc import Sequence
from typing import NamedTuple

from moe_retrieval.retrieval.embedder import Embedder
from moe_retrieval.retrieval.encode import encode_texts
from moe_retrieval.retrieval.index import Index


class Hit(NamedTuple):
    rank: int
    score: float
    id: str
    title: str
    text: str


def search(index: Index, model: Embedder, questions: Sequence[str], top_k: int = 10) -> list[list[Hit]]:
    """The best documents for each question."""
    scores_QK, rows_QK = index.search(encode_texts(model, questions, "query"), top_k)
    return [
        [_hit(index, rank, score, row) for rank, (score, row) in enumerate(zip(scores, rows), 1) if row >= 0]
        for scores, rows in zip(scores_QK.tolist(), rows_QK.tolist())
    ]


def _hit(index: Index, rank: int, score: float, row: int) -> Hit:
    record = index.documents.record(row)
    return Hit(rank, score, str(record["_id"]), record.get("title") or "", record["text"])
