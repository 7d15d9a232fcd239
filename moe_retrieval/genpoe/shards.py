"""Embeddings of passages in shards, each a file: made one after the other, and searched one after the other.

What is in memory is one slice of one shard, however many passages there are. A shard that an earlier run left whole is
not made again, and one that it left in part goes on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_retrieval.data.records import Texts
from moe_retrieval.errors import InputError, changes
from moe_retrieval.files import check_space, read_object, write_json
from moe_retrieval.genpoe.examples import Example
from moe_retrieval.genpoe.passages import Passages
from moe_retrieval.progress import Meter
from moe_retrieval.retrieval.embedder import Embedder
from moe_retrieval.retrieval.encode import encode_texts
from moe_retrieval.retrieval.exact import import_faiss, merge, nearest

DESCRIPTION = "shards.json"


@dataclass(frozen=True)
class Shards:
    """Of these passages by this model, in a folder."""

    model: Embedder
    passages: Passages
    folder: Path
    size: int
    """Passages a shard"""
    max_tokens: int

    def begin(self) -> None:
        """Raises for a folder of other embeddings, which would be lost, and for a disk that is too full."""
        path, now = self.folder / DESCRIPTION, self.description()
        if path.exists():
            if changed := changes(read_object(path), now):
                raise InputError(f"{self.folder} holds embeddings of {changed}: give another --embeddings")
        else:
            write_json(path, now)
        taken = sum(512 * file.stat().st_blocks for file in self.folder.iterdir())
        check_space(self.folder, 4 * self.model.hidden_size * len(self.passages) - taken)
        import_faiss()  # before the long part

    def description(self) -> dict[str, Any]:
        return {
            "model": self.model.fingerprint,
            "precision": self.model.precision,
            "doc_prompt": self.model.usage.doc_prompt,
            "doc_length": self.model.usage.doc_length,
            "joint": self.passages.joint,
            "passages": self.passages.fingerprint,
            "max_tokens": self.max_tokens,  # on which the last bits depend
            "shard_size": self.size,
        }

    def search(self, queries_QH: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """-> scores_QK, rows_QK: the k best passages of each query, the best first; makes the shards that lack."""
        found = np.zeros((len(queries_QH), 0), np.float32), np.zeros((len(queries_QH), 0), np.int64)
        for start in range(0, len(self.passages), self.size):
            embeddings_PH = self.embeddings(start)
            with Meter(f"searching {self._name(start)}"):
                scores, rows = nearest(queries_QH, embeddings_PH, k, shard=True, device=self.model.device)
            found = merge([found, (scores, rows + start)], k)
        return found

    def embeddings(self, start: int) -> np.ndarray:
        """Of the shard that begins with this passage."""
        rows = range(start, min(start + self.size, len(self.passages)))
        return encode_texts(
            self.model, Texts(self.passages, rows), "document",
            output=self.folder / f"{start // self.size:05d}.npy", fingerprint=self.passages.fingerprint_of(rows),
            shard=True, max_tokens=self.max_tokens, progress=f"passages, {self._name(start)}",
        )  # fmt: skip

    def _name(self, start: int) -> str:
        return f"shard {start // self.size + 1} of {-(-len(self.passages) // self.size)}"


def with_passages(
    examples: Sequence[Example], passages: Passages, scores_QK: np.ndarray, rows_QK: np.ndarray
) -> Iterator[Example]:
    """Each question with what was found for it."""
    for example, scores, rows in zip(examples, scores_QK.tolist(), rows_QK.tolist()):
        found = (passages.passage(row)._replace(score=score) for score, row in zip(scores, rows))
        yield example._replace(ctxs=tuple(found))
