"""A collection's documents, ranked for the queries of a split: by a model, or by BM25.

Three settings that are never mixed: "full" ranks the whole corpus (for the split test the headline, for train the
fit), "gold-pool" ranks only what answers some query of the split.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moe_retrieval.data import Collection
from moe_retrieval.data.records import Texts
from moe_retrieval.errors import InputError
from moe_retrieval.evaluation.runs import Run
from moe_retrieval.progress import Meter
from moe_retrieval.retrieval.bm25 import BM25
from moe_retrieval.retrieval.embedder import Embedder
from moe_retrieval.retrieval.encode import MAX_TOKENS, count_stored, encode_texts
from moe_retrieval.retrieval.exact import nearest

SETTINGS = ("full", "gold-pool")
DEPTH = 1000
"""Documents of a ranking that are kept"""


def candidate_rows(collection: Collection, split: str, setting: str) -> Sequence[int]:
    """The documents that are ranked."""
    if setting not in SETTINGS:
        raise InputError(f"setting must be one of {', '.join(SETTINGS)}; got {setting!r}")
    if setting == "full":
        return range(len(collection.documents))
    answers = {
        document for judged in collection.qrels(split).values() for document, score in judged.items() if score > 0
    }
    rows = sorted(row for row in map(collection.documents.row, answers) if row is not None)
    if not rows:
        raise InputError(f"the split {split} of {collection.name} has no document that answers a query")
    return rows


def model_run(
    model: Embedder,
    collection: Collection,
    split: str = "test",
    setting: str = "full",
    *,
    output_dir: str | Path | None = None,
    max_tokens: int = MAX_TOKENS,
    shard: bool = True,
    progress: bool = True,
) -> Run:
    """The ranking of the best 1,000 documents for each query of a split.

    In a process group all ranks call this and share the work, unless `shard` is False. A document that has the
    query's own id is left out, as in BEIR, unless it is judged relevant.
    """
    candidates = candidate_rows(collection, split, setting)
    queries = collection.queries(split)
    stored = None if output_dir is None else embeddings_file(output_dir, collection)
    options: dict[str, Any] = {"shard": shard, "max_tokens": max_tokens}
    if setting == "full":
        documents_NH = encode_texts(
            model, collection.documents.texts, "document", output=stored, fingerprint=collection.documents.fingerprint,
            progress="documents" if progress else None, **options,
        )  # fmt: skip
    else:
        pool = Texts(collection.documents, candidates)
        documents_NH = encode_texts(model, pool, "document", progress="documents" if progress else None, **options)
    queries_QH = encode_texts(
        model, list(queries.values()), "query", progress="queries" if progress else None, **options
    )
    with Meter("ranking" if progress else None):
        return embeddings_run(collection, split, setting, queries_QH, documents_NH, shard=shard, device=model.device)


def embeddings_run(
    collection: Collection,
    split: str,
    setting: str,
    queries_QH: np.ndarray,
    documents_NH: np.ndarray,
    *,
    shard: bool = False,
    device: torch.device | str = "cpu",
) -> Run:
    """The ranking by embeddings that are there: of the split's queries, and of the setting's documents, in order."""
    candidates = candidate_rows(collection, split, setting)
    scores_QK, rows_QK = nearest(queries_QH, documents_NH, DEPTH + 1, shard=shard, device=device)
    return _as_run(collection, split, scores_QK, [[candidates[place] for place in row] for row in rows_QK.tolist()])


def embeddings_file(folder: str | Path, collection: Collection) -> Path:
    """Where a model's embeddings of a collection's documents are kept below the results."""
    return Path(folder) / "embeddings" / f"{collection.fingerprint}.npy"


def has_embeddings(
    model: Embedder,
    collection: Collection,
    setting: str = "full",
    *,
    output_dir: str | Path | None,
    max_tokens: int = MAX_TOKENS,
) -> bool:
    """Whether an earlier evaluation left some that `model_run` of the same arguments goes on with."""
    if output_dir is None or setting != "full":
        return False
    documents, stored = collection.documents, embeddings_file(output_dir, collection)
    return bool(
        count_stored(model, documents.texts, output=stored, fingerprint=documents.fingerprint, max_tokens=max_tokens)
    )


def bm25_run(collection: Collection, split: str = "test", setting: str = "full", progress: bool = True) -> Run:
    """BM25's ranking of the same documents."""
    candidates = candidate_rows(collection, split, setting)
    queries = collection.queries(split)
    found = []
    with Meter("BM25" if progress else None, len(queries), "queries") as meter:
        index = BM25(Texts(collection.documents, candidates))
        for query in queries.values():
            found += index.search([query], DEPTH + 1)
            meter.advance()
    rows = [[candidates[place] for place in places.tolist()] for _, places in found]
    return _as_run(collection, split, [scores for scores, _ in found], rows)


def _as_run(collection: Collection, split: str, scores: Any, rows: list[list[int]]) -> Run:
    run: Run = {}
    names: dict[int, str] = {}
    for (query, judged), scores_K, rows_K in zip(collection.qrels(split).items(), scores, rows):
        found = {}
        for score, row in zip(np.asarray(scores_K).tolist(), rows_K):
            name = names.get(row) or names.setdefault(row, collection.documents.id(row))
            if name != query or judged.get(name, 0) > 0:
                found[name] = score
        run[query] = dict(list(found.items())[:DEPTH])
    return run
