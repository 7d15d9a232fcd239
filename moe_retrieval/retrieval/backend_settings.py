"""What can be said about the kind of an index; `backends` makes them."""

from dataclasses import dataclass
from typing import Literal, get_args

from moe_retrieval.bounds import check_bounds
from moe_retrieval.errors import InputError

Backend = Literal["exact", "hnsw", "ivf"]
KINDS = get_args(Backend)

LIMITS = {"hnsw_links": (2, 512), "hnsw_effort": (1, 65536), "ivf_lists": (1, None), "ivf_probes": (1, None)}
"""The least and the most. A document takes 8 bytes a link, and beyond these links no graph finds more; lists and
probes are at most as many as there are documents."""


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
        check_bounds(self, LIMITS)
