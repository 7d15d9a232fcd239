"""Texts to embeddings: any number of them, on any number of ranks, from where an earlier run stopped.

1. The texts are cut into blocks of `BLOCK` consecutive ones: the unit of sharding and of resuming.
2. A block's texts are sorted by length, tokenised `PIECE` at a time and cut into batches of up to `max_tokens` tokens.
3. While a batch is computed, a thread prepares the next one.
4. A block's embeddings are written in the order of the texts, to memory or to a file, and then it is marked as done.

A block's batches do not depend on the other blocks, on the number of ranks or on what was done before: neither do the
bits of its embeddings.
"""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from moe_retrieval.errors import InputError

BLOCK = 256
"""Texts"""

PIECE = 32
"""Texts that are tokenised at a time: few, for the first batch waits for its own; enough for all cores"""

MAX_TOKENS = 16384
"""Tokens a batch: enough for a CPU; a GPU that is not filled wants more"""

KINDS = ("text", "query", "document")


def encode_texts(
    model: Any,
    texts: Sequence[str],
    kind: str = "document",
    *,
    output: str | Path | None = None,
    fingerprint: str | None = None,
    shard: bool = False,
    max_tokens: int = MAX_TOKENS,
    progress: str | None = None,
) -> np.ndarray:
    """float32 embeddings [N, H], row i of texts[i].

    `kind` picks the model's prompt and length; "text" has no prompt and the length of a document. With `output`, a
    path ending in .npy, rows go to that file as they come, a run that was stopped goes on where it was, and the
    result is a read-only memory map; `fingerprint` says which texts these are (else they are all read first). With
    `shard`, every rank of the process group calls this and computes its share, and each has the whole result.
    `progress` is the label of a progress bar on rank 0, if that has a terminal.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if max_tokens < 1:
        raise InputError(f"max_tokens must be at least 1, got {max_tokens}")
    rank, world = (dist.get_rank(), dist.get_world_size()) if shard and dist.is_initialized() else (0, 1)
    encoder = _BlockEncoder(model, texts, kind, max_tokens)
    if output is None:
        store: _Memory | _File = _Memory(len(texts), model)
    else:
        state = encoder.state(fingerprint) if rank == 0 else {}
        store = _File(Path(output), len(texts), model, state, rank, world)
    waiting = list(range(0, len(texts), BLOCK))[rank::world]
    waiting = [start for start in waiting if not store.has(start)]
    total = sum(map(encoder.size, waiting))
    with tqdm(total=total, desc=progress, disable=True if progress is None or rank else None) as bar:
        for start, embeddings in encoder.run(waiting):
            store.write(start, embeddings)
            bar.update(len(embeddings))
    return store.finish(rank, world)


Item = TypeVar("Item")
Batch = tuple[int, list[int], list[list[int]]]
"""Its block's start, rows of that block, their token ids"""


class _BlockEncoder:
    def __init__(self, model: Any, texts: Sequence[str], kind: str, max_tokens: int):
        self.model, self.texts, self.kind, self.max_tokens = model, texts, kind, max_tokens
        self.prompt = {"text": "", "query": model.query_prompt, "document": model.doc_prompt}[kind]
        self.length = model.query_length if kind == "query" else model.doc_length

    def state(self, fingerprint: str | None) -> dict[str, Any]:
        """All that the bits of the result depend on."""
        if fingerprint is None:
            digest = blake2b(digest_size=8)
            for text in self.texts:
                digest.update(f"{len(text)} {text}".encode())
            fingerprint = digest.hexdigest()
        return {
            "model": self.model.fingerprint,
            "precision": getattr(self.model, "precision", None),
            "texts": fingerprint,
            "prompt": self.prompt,
            "length": self.length,
            "max_tokens": self.max_tokens,
        }

    def run(self, starts: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        batches: Iterator[Batch] = (batch for start in starts for batch in self.batches(start))
        if len(starts) > 1 or len(self.texts) > PIECE:  # a query would wait for the thread to start
            batches = _one_ahead(batches)
        rows: list[int] = []
        parts: list[torch.Tensor] = []
        for start, some, sequences in batches:
            rows += some
            parts.append(self.model.embed_tokens(sequences))
            if len(rows) == self.size(start):
                embeddings = np.empty((len(rows), self.model.hidden_size), dtype=np.float32)
                embeddings[rows] = torch.cat(parts).cpu().numpy()
                rows, parts = [], []
                yield start, embeddings

    def size(self, start: int) -> int:
        return min(BLOCK, len(self.texts) - start)

    def batches(self, start: int) -> Iterator[Batch]:
        """The block's texts from the shortest on: their tokens are the first to be there."""
        texts = [self.texts[i] for i in range(start, start + self.size(start))]
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts[{start + place}] must be a string, got {type(text).__name__}")
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        batch: list[tuple[int, list[int]]] = []
        tokens = 0
        for first in range(0, len(order), PIECE):
            piece = order[first : first + PIECE]
            for row, sequence in zip(piece, self.tokenize([texts[row] for row in piece])):
                if batch and tokens + len(sequence) > self.max_tokens:
                    yield _by_length(start, batch)
                    batch, tokens = [], 0
                batch.append((row, sequence))
                tokens += len(sequence)
        yield _by_length(start, batch)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return self.model.tokenizer.encode_batch([self.prompt + text for text in texts], self.length)


def _by_length(start: int, batch: list[tuple[int, list[int]]]) -> Batch:
    # Longest first, so that what is left for the last thread that computes is short.
    batch = sorted(batch, key=lambda item: -len(item[1]))
    return start, [row for row, _ in batch], [sequence for _, sequence in batch]


def _one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same, each made by a thread while the one before is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


class _Memory:
    def __init__(self, rows: int, model: Any):
        self.embeddings = np.zeros((rows, model.hidden_size), dtype=np.float32)
        self.device = getattr(model, "device", torch.device("cpu"))

    def has(self, start: int) -> bool:
        return False

    def write(self, start: int, embeddings: np.ndarray) -> None:
        self.embeddings[start : start + len(embeddings)] = embeddings

    def finish(self, rank: int, world: int) -> np.ndarray:
        if world > 1:  # a sum in which all but one rank have zeros
            shared = torch.from_numpy(self.embeddings).to(self.device if dist.get_backend() == "nccl" else "cpu")
            dist.all_reduce(shared)
            self.embeddings = shared.cpu().numpy()
        return self.embeddings


class _File:
    """X.npy, which is X.part as long as it is not whole, with a byte a block in X.done and its `state` in X.json.

    Rows are written with write(), not through a memory map: they would count as this process's memory.
    """

    def __init__(self, path: Path, rows: int, model: Any, state: dict[str, Any], rank: int, world: int):
        if path.suffix != ".npy":
            raise ValueError(f"output must end in .npy, got {path}")
        self.path, self.rows = path, rows
        self.part, self.done, self.json = (path.with_suffix(suffix) for suffix in (".part", ".done", ".json"))
        self.row_bytes = 4 * model.hidden_size
        if rank == 0:
            self.prepare(rows, model.hidden_size, state | {"rows": rows, "block": BLOCK})
        if world > 1:
            dist.barrier()
        self.whole = path.exists()
        if not self.whole:
            self.header = self.part.stat().st_size - rows * self.row_bytes
            self.data, self.marks = (open(file, "r+b", buffering=0) for file in (self.part, self.done))  # noqa: SIM115

    def prepare(self, rows: int, width: int, state: dict[str, Any]) -> None:
        """Leaves what an earlier run made of the same state; else begins anew."""
        begun = self.path.exists() or (self.part.exists() and self.done.exists())
        if begun and self.json.exists() and json.loads(self.json.read_text()) == state:
            return
        for file in (self.json, self.path, self.part, self.done):
            file.unlink(missing_ok=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if rows:
            np.lib.format.open_memmap(self.part, "w+", np.float32, (rows, width))
        else:  # nothing can be mapped
            with open(self.part, "wb") as empty:
                np.save(empty, np.zeros((0, width), np.float32))
        self.done.write_bytes(bytes(-(-rows // BLOCK)))
        draft = self.json.with_suffix(".json.draft")
        draft.write_text(json.dumps(state))
        draft.replace(self.json)

    def has(self, start: int) -> bool:
        if self.whole:
            return True
        self.marks.seek(start // BLOCK)
        return self.marks.read(1) == b"\1"

    def write(self, start: int, embeddings: np.ndarray) -> None:
        self.data.seek(self.header + start * self.row_bytes)
        self.data.write(embeddings.tobytes())
        os.fsync(self.data.fileno())
        self.marks.seek(start // BLOCK)
        self.marks.write(b"\1")

    def finish(self, rank: int, world: int) -> np.ndarray:
        if not self.whole:
            self.data.close()
            self.marks.close()
        if world > 1:
            dist.barrier()
        if rank == 0 and not self.whole:
            self.part.replace(self.path)
            self.done.unlink()
        if world > 1:
            dist.barrier()
        return np.load(self.path, mmap_mode="r" if self.rows else None)
