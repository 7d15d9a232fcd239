"""An index whose vectors stay on a GPU: FAISS has exact and IVF there, where it was built for one; torch has exact."""

import logging
from typing import Any

import numpy as np
import torch

from moe_retrieval.retrieval.exact import Resident, import_faiss

log = logging.getLogger("moe_retrieval")

MOST = 2048
"""Neighbours that FAISS finds at once on a GPU"""


class OnGPU:
    """A FAISS index on the first GPU; the one that it was made of answers what is too much for a GPU."""

    def __init__(self, index: Any):
        faiss = import_faiss()
        self.index = index
        self.resources = faiss.StandardGpuResources()  # the memory that the copy works in
        self.copy = faiss.index_cpu_to_gpu(self.resources, 0, index)

    def search(self, queries_QH: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return (self.copy if k <= MOST else self.index).search(queries_QH, k)


def resident(index: Any, kind: str) -> Any:
    """What searches a FAISS index of this kind: on a GPU, if there is one that has room for it; else the index itself.

    HNSW is for CPUs alone: a search goes from document to document.
    """
    if kind == "hnsw":
        return index
    faiss = import_faiss()
    try:
        if faiss.get_num_gpus() > 0:
            return OnGPU(index)
        if kind == "exact" and torch.cuda.is_available() and index.ntotal:
            vectors = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)  # the index's own memory
            return Resident(vectors.reshape(index.ntotal, index.d), "cuda", of=index)
    except (RuntimeError, MemoryError) as error:  # torch's out of memory is one, and FAISS raises such
        log.warning("the index is searched on the CPU: the GPU does not take it (%s)", str(error).partition("\n")[0])
    return index
