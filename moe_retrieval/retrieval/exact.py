"""Exact nearest documents by inner product, in fixed slices of the documents, shared by the ranks.

A score is computed in the same slice whatever the number of ranks: they all find the same neighbours.
"""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from moe_retrieval.errors import InputError

SLICE = 16384
"""Documents: for a thousand queries, 64 MB of scores"""

SETTLED_TOGETHER = 256
"""Queries: 0.5 MB each, for all scores of a slice and their order"""


def nearest(
    queries_QH: np.ndarray, documents_NH: np.ndarray, k: int, *, shard: bool = False, device: torch.device | str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """-> scores_QK (float32), rows_QK (int64): the k best rows of each query, the best first; of equal ones the later.

    Where there are fewer than k documents, there are fewer columns. FAISS computes on the CPU, torch on a GPU. With
    `shard`, every rank calls this with the same arrays (memory maps will do) and gets the whole result.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    rank, world = (dist.get_rank(), dist.get_world_size()) if shard and dist.is_initialized() else (0, 1)
    k = min(k, len(documents_NH))
    scores = np.full((len(queries_QH), k), -np.inf, dtype=np.float32)
    rows = np.full((len(queries_QH), k), -1, dtype=np.int64)
    queries_QH = np.ascontiguousarray(queries_QH, dtype=np.float32)
    search = _search_on_gpu if torch.device(device).type == "cuda" else _search_on_cpu
    for start in range(0, len(documents_NH), SLICE)[rank::world]:
        slice_DH = np.ascontiguousarray(documents_NH[start : start + SLICE], dtype=np.float32)
        found, places = search(queries_QH, slice_DH, min(k + 1, len(slice_DH)), device)
        if found.shape[1] > k:
            found, places = _settle_ties(found, places, queries_QH, slice_DH)
        scores, rows = merge([(scores, rows), (found, places + start)], k)
    if world > 1:
        scores, rows = merge(list(zip(_gather(scores), _gather(rows))), k)
    return scores, rows


def import_faiss() -> Any:
    """Two packages own this module, so that neither is required by default."""
    try:
        import faiss
    except ImportError:
        raise InputError("FAISS is not installed: pip install 'moe-retrieval[cpu]', or [gpu]") from None
    return faiss


def _search_on_cpu(queries_QH, slice_DH, k, device):
    faiss = import_faiss()
    if not len(queries_QH):
        return np.zeros((0, k), np.float32), np.zeros((0, k), np.int64)
    return faiss.knn(queries_QH, slice_DH, k, metric=faiss.METRIC_INNER_PRODUCT)


def _search_on_gpu(queries_QH, slice_DH, k, device):
    documents_DH = torch.from_numpy(slice_DH).to(device)
    found = [
        (torch.from_numpy(queries_QH[start : start + 1024]).to(device) @ documents_DH.T).topk(k)
        for start in range(0, max(len(queries_QH), 1), 1024)
    ]
    scores, places = (torch.cat(parts).cpu().numpy() for parts in zip(*found))
    return scores, places


def _settle_ties(scores, places, queries_QH, slice_DH):
    """One column less. A search keeps any of the rows that tie at its end: where they do, the later ones are taken."""
    tied = np.flatnonzero(scores[:, -1] == scores[:, -2])
    scores, places = scores[:, :-1].copy(), places[:, :-1].copy()
    for start in range(0, len(tied), SETTLED_TOGETHER):
        part = tied[start : start + SETTLED_TOGETHER]
        all_QD = queries_QH[part] @ slice_DH.T
        every = np.broadcast_to(np.arange(len(slice_DH)), all_QD.shape)
        scores[part], places[part] = merge([(all_QD, every)], scores.shape[1])
    return scores, places


def merge(parts: list[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best columns of several results (scores, rows); of equal scores the later row, as a ranking by id breaks
    ties downwards too.
    """
    scores = np.concatenate([scores for scores, _ in parts], axis=1)
    rows = np.concatenate([rows for _, rows in parts], axis=1)
    order = np.lexsort((-rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _gather(array: np.ndarray) -> list[np.ndarray]:
    """Every rank's array of this shape."""
    mine = torch.from_numpy(array).to("cuda" if dist.get_backend() == "nccl" else "cpu")
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    return [part.cpu().numpy() for part in parts]
