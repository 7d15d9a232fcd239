"""The kinds of FAISS index that an index can be: exact, HNSW, IVF; and how much the last two miss."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from moe_retrieval.errors import InputError
from moe_retrieval.retrieval.exact import import_faiss, nearest

Backend = Literal["exact", "hnsw", "ivf"]
KINDS = get_args(Backend)
MOST_LINKS = 1024
"""FAISS reserves room for them in advance: a mistyped number would take all memory."""


@dataclass(frozen=True)
class BackendSettings:
    kind: Backend = "exact"
    hnsw_links: int = 32
    """Neighbours of a document"""
    hnsw_effort: int = 128
    """Candidates that a search keeps"""
    ivf_lists: int | None = None
    """Lists that the documents are divided into; None is 4 times the square root of their number"""
    ivf_probes: int | None = None
    """Lists that a search reads; None is an eighth of them"""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"kind must be one of {', '.join(KINDS)}; got {self.kind!r}")
        least = {"hnsw_links": 2, "hnsw_effort": 1, "ivf_lists": 1, "ivf_probes": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise InputError(f"{name} must be at least {smallest}, got {value}")
        if self.hnsw_links > MOST_LINKS:
            raise InputError(f"hnsw_links must be at most {MOST_LINKS}, got {self.hnsw_links}")


def new_backend(vectors_NH: np.ndarray, settings: BackendSettings) -> Any:
    """Empty, and trained where that is needed."""
    faiss = import_faiss()
    count, width = vectors_NH.shape
    if settings.kind == "exact":
        return faiss.IndexFlatIP(width)
    if settings.kind == "hnsw":
        graph = faiss.IndexHNSWFlat(width, settings.hnsw_links, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction, graph.hnsw.efSearch = max(settings.hnsw_effort, 40), settings.hnsw_effort
        return graph
    lists = min(settings.ivf_lists or max(1, int(4 * count**0.5)), count)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = min(settings.ivf_probes or max(1, lists // 8), lists)
    index.cp.min_points_per_centroid = 1  # a small corpus is no reason to warn
    sample = np.random.default_rng(0).permutation(count)[: 64 * lists]
    index.train(np.ascontiguousarray(vectors_NH[np.sort(sample)]))
    return index


def recall(index: Any, vectors_NH: np.ndarray, k: int = 10, queries: int = 1000) -> float:
    """The share of the k nearest documents that the index finds too, documents of the corpus being the queries."""
    rows = np.random.default_rng(0).permutation(len(vectors_NH))[:queries]
    sample = np.ascontiguousarray(vectors_NH[np.sort(rows)])
    k = min(k, len(vectors_NH))
    _, expected = nearest(sample, vectors_NH, k)
    _, found = index.search(sample, k)
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(expected.tolist(), found.tolist())]))
