"""Passages found by their words (BM25), as embeddings would find them: a retriever that needs no model."""

from collections.abc import Iterator, Sequence

from moe_retrieval.genpoe.examples import Example
from moe_retrieval.genpoe.passages import Passages
from moe_retrieval.retrieval.bm25 import BM25


def by_words(examples: Sequence[Example], passages: Passages, k: int) -> Iterator[Example]:
    """Each question with its k best passages, or fewer where fewer share a word with it."""
    bm25 = BM25([passages.text(row) for row in range(len(passages))])
    for example, (scores, rows) in zip(examples, bm25.search((each.question for each in examples), k)):
        found = (passages.passage(row)._replace(score=score) for score, row in zip(scores.tolist(), rows.tolist()))
        yield example._replace(ctxs=tuple(found))
