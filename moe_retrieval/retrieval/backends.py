"""The kinds of FAISS index that an index can be: exact, HNSW, IVF; and how much the last two miss."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np

from moe_retrieval.retrieval.backend_settings import BackendSettings
from moe_retrieval.retrieval.exact import import_faiss, nearest

log = logging.getLogger("moe_retrieval")

FEW = 256
"""Documents up to which an exact search is as fast as any, and another one misses much."""

LOW_RECALL = 0.9
"""Of what an exact search finds; below it one should know."""


def fitting(settings: BackendSettings, count: int) -> BackendSettings:
    """These settings, or exact where there are too few documents for another kind."""
    if settings.kind == "exact" or count > FEW:
        return settings
    log.warning("%d documents are too few for %s: the index is exact", count, settings.kind)
    return replace(settings, kind="exact")


def measured_recall(index: Any, vectors_NH: np.ndarray, kind: str) -> float:
    """The recall of an approximate index, with a word where it is low."""
    found = recall(index, vectors_NH)
    if found < LOW_RECALL:
        effort = {"hnsw": "--hnsw-effort or --hnsw-links", "ivf": "--ivf-probes"}[kind]
        log.warning(
            "%s finds %.0f%% of the nearest documents: raise %s, or use --kind exact", kind, 100 * found, effort
        )
    return found


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
