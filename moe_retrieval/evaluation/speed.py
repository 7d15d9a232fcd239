"""How fast a model is in use: many documents together, and one question alone."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import numpy as np

from moe_retrieval.data.collection import Collection
from moe_retrieval.models.usage import Kind
from moe_retrieval.retrieval.embedder import Embedder
from moe_retrieval.retrieval.encode import encode_texts

DOCUMENTS = 512
QUERIES = 50
UNTIMED = 5
"""Documents that go first, alone: what is made at a first call is made then."""

log = logging.getLogger("moe_retrieval")


def measure_speed(model: Embedder, collection: Collection, split: str) -> dict[str, float]:
    """documents_per_second, and query_ms, the median from one question of the split to its embedding."""
    documents, queries = collection.documents.texts, list(collection.queries(split).values())[:QUERIES]
    rows = np.linspace(0, len(documents) - 1, min(DOCUMENTS, len(documents))).astype(int)
    chosen = [documents[int(row)] for row in rows]
    with _unheard():
        for text in chosen[:UNTIMED]:
            _seconds(model, [text], "document")
        together = _seconds(model, chosen, "document")
        alone = [_seconds(model, [query], "query") for query in queries]
    return {"documents_per_second": len(chosen) / together, "query_ms": 1000 * median(alone)}


def _seconds(model: Embedder, texts: Sequence[str], kind: Kind) -> float:
    began = time.perf_counter()
    encode_texts(model, texts, kind)
    return time.perf_counter() - began


@contextmanager
def _unheard() -> Iterator[None]:
    """What is cut off of a text was said when all were encoded."""
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
