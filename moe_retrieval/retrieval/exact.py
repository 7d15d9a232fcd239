"""Exact nearest documents by inner product, in fixed slices of the documents, shared by the ranks.

A score is computed in the same slice whatever the number of ranks: they all find the same neighbours.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

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
    queries_QH = np.ascontiguousarray(queries_QH, dtype=np.float32)
    search = _search_on_gpu if torch.device(device).type == "cuda" else _search_on_cpu
    slices = (
        (start, np.ascontiguousarray(documents_NH[start : start + SLICE], dtype=np.float32))
        for start in range(0, len(documents_NH), SLICE)[rank::world]
    )
    scores, rows = _over_slices(queries_QH, slices, k, lambda _, slice_DH, n: search(queries_QH, slice_DH, n, device))
    if world > 1:
        scores, rows = merge(list(zip(_gather(scores), _gather(rows))), k)
    return scores, rows


class Resident:
    """Documents that stay on a device, to be searched again and again, as `nearest` does."""

    def __init__(self, documents_NH: np.ndarray, device: torch.device | str, of: Any = None):
        """`of` is what owns the memory of the array, if that is none of numpy's."""
        self.device, self.owner = device, of
        self.slices = {
            start: np.ascontiguousarray(documents_NH[start : start + SLICE], dtype=np.float32)
            for start in range(0, len(documents_NH), SLICE)
        }
        self.there = {start: torch.from_numpy(slice_DH).to(device) for start, slice_DH in self.slices.items()}

    def search(self, queries_QH: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """-> scores_QK, rows_QK, as those of `nearest`"""
        queries_QH = np.ascontiguousarray(queries_QH, dtype=np.float32)
        asked_QH = torch.from_numpy(queries_QH).to(self.device)
        k = min(k, sum(map(len, self.slices.values())))
        return _over_slices(
            queries_QH, self.slices.items(), k, lambda start, _, n: _best(asked_QH, self.there[start], n)
        )


def _over_slices(
    queries_QH: np.ndarray,
    slices: Iterable[tuple[int, np.ndarray]],
    k: int,
    search: Callable[[int, np.ndarray, int], tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of all slices, each of which `search` goes through: (start, itself, how many) -> scores, places."""
    scores = np.full((len(queries_QH), k), -np.inf, dtype=np.float32)
    rows = np.full((len(queries_QH), k), -1, dtype=np.int64)
    for start, slice_DH in slices:
        found, places = search(start, slice_DH, min(k + 1, len(slice_DH)))
        if found.shape[1] > k:
            found, places = _settle_ties(found, places, queries_QH, slice_DH)
        scores, rows = merge([(scores, rows), (found, places + start)], k)
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
    return _best(torch.from_numpy(queries_QH).to(device), torch.from_numpy(slice_DH).to(device), k)


def _best(queries_QH: Tensor, documents_DH: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    found = [
        (queries_QH[start : start + 1024] @ documents_DH.T).topk(k) for start in range(0, max(len(queries_QH), 1), 1024)
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
