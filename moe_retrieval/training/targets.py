"""Which document is which: the positive of a query and its hard negatives, on this rank and on all.

Suffixes: see `losses.py`.
"""

from dataclasses import dataclass
from hashlib import blake2b

import torch
import torch.distributed as dist
from torch import Tensor

from moe_retrieval.copies import to_device
from moe_retrieval.training.distributed import gather_rows


def document_key(document_id: str, part: int = 0) -> int:
    """A number for an id that can be compared across ranks; `part` is the place of its data set among several, of
    which another may have the same id for another document."""
    digest = blake2b(document_id.encode(), digest_size=8, salt=part.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little", signed=True)


@dataclass(frozen=True)
class Targets:
    """Which document is which, for the queries of one rank's share of a batch."""

    keys_NC: Tensor
    """The key of each document that came with a query."""
    relevant_NR: Tensor
    """The keys of all documents that answer the query, filled up with any of them."""
    counts: list[int]
    """Queries of each rank."""

    def to(self, device: torch.device) -> "Targets":
        return Targets(to_device(self.keys_NC, device), to_device(self.relevant_NR, device), self.counts)

    def pinned(self) -> "Targets":
        return Targets(self.keys_NC.pin_memory(), self.relevant_NR.pin_memory(), self.counts)


def gather_columns(documents_CNH: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
    """-> documents_DH of all ranks (every positive, then every first negative, ...) and labels_N, where ours are."""
    gathered = gather_rows(
        documents_CNH.transpose(0, 1), counts
    )  # rows are queries: what belongs to one stays together
    documents_DH = gathered.transpose(0, 1).flatten(0, 1)
    return documents_DH, torch.arange(documents_CNH.shape[1], device=documents_CNH.device) + _first_label(counts)


def _first_label(counts: list[int]) -> int:
    return 0 if len(counts) == 1 else sum(counts[: dist.get_rank()])
