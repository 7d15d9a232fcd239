"""Texts to embeddings: any number of them, on any number of ranks, from where an earlier run stopped.

1. The texts are cut into windows of consecutive ones: the unit of sharding and of resuming.
2. A window's texts are sorted by length, tokenised a few at a time and cut into batches of up to `max_tokens` tokens.
3. While a batch is computed, a thread prepares the next one; for a GPU, which would have to wait, the next few.
4. A window's embeddings are written in the order of the texts, to memory or to a file, and then it is marked as done.
   Those of a GPU come while it computes the next window.

A window's batches do not depend on the other windows, on the number of ranks or on what was done before: neither do
the bits of its embeddings.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import torch
import torch.distributed as dist

from moe_retrieval.copies import Fetched
from moe_retrieval.errors import InputError
from moe_retrieval.models.usage import Kind
from moe_retrieval.progress import Meter
from moe_retrieval.retrieval.embedder import Embedder
from moe_retrieval.retrieval.limits import MAX_TOKENS
from moe_retrieval.retrieval.store import File, Memory

WINDOW = 256
"""Texts"""
GPU_WINDOW = 1024
"""On a GPU, of which more texts fill its batches evenly"""

TOKENIZED_TOGETHER = 32
"""Texts: few, for the first batch waits for its own; enough for all cores"""
GPU_TOKENIZED_TOGETHER = 128
"""For a GPU, which has a batch sooner than the cores of its machine have 32 texts each"""

GPU_BATCHES_AHEAD = 4

KINDS = get_args(Kind)

log = logging.getLogger("moe_retrieval")


def encode_texts(
    model: Embedder,
    texts: Sequence[str],
    kind: Kind = "document",
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
    `progress` is the label under which rank 0 says how far it is.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if max_tokens < 1:
        raise InputError(f"max_tokens must be at least 1, got {max_tokens}")
    rank, world = (dist.get_rank(), dist.get_world_size()) if shard and dist.is_initialized() else (0, 1)
    windows = _Windows(model, texts, kind, max_tokens)
    shape = len(texts), model.hidden_size
    if output is None:
        store: Memory | File = Memory(shape, model.device, world)
    else:
        state = windows.state(fingerprint) if rank == 0 else {}
        store = File(Path(output), shape, windows.window, state, rank, world)
    kept = store.count_kept() if rank == 0 else 0
    store.begin()
    waiting = [start for start in windows.starts()[rank::world] if not store.has(start)]
    share = sum(map(windows.size, waiting))
    encoded = 0
    with Meter(progress, len(texts), "texts", done=kept) as meter:
        for start, embeddings in windows.encode(waiting):
            store.write(start, embeddings)
            encoded += len(embeddings)
            # the other ranks are taken to be as far with their shares
            meter.advance(kept + (len(texts) - kept) * encoded // share - meter.done)
    windows.say_what_was_cut(share, world)
    return store.finish()


def count_stored(
    model: Embedder,
    texts: Sequence[str],
    kind: Kind = "document",
    *,
    output: str | Path,
    fingerprint: str | None = None,
    max_tokens: int = MAX_TOKENS,
) -> int:
    """The embeddings in `output` that `encode_texts` of the same arguments would not compute again."""
    windows = _Windows(model, texts, kind, max_tokens)
    shape = len(texts), model.hidden_size
    return File(Path(output), shape, windows.window, windows.state(fingerprint)).count_kept()


def token_batches(
    model: Embedder, texts: Sequence[str], kind: Kind = "document", *, max_tokens: int = MAX_TOKENS
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """What `encode_texts` gives to the model at a time: rows of the texts, and their token ids."""
    windows = _Windows(model, texts, kind, max_tokens)
    batches: Iterator[Batch] = (batch for start in windows.starts() for batch in windows.batches(start))
    for start, rows, sequences in _ahead(batches):
        yield [start + row for row in rows], sequences
    windows.say_what_was_cut(len(texts), world=1)


def check_finite(embeddings: np.ndarray) -> None:
    if not np.isfinite(embeddings).all():
        raise InputError("the model's embeddings are not finite: its weights or its --precision overflow")


Item = TypeVar("Item")
Batch = tuple[int, list[int], list[list[int]]]
"""Its window's start, rows of that window, their token ids"""


class _Windows:
    def __init__(self, model: Embedder, texts: Sequence[str], kind: Kind, max_tokens: int):
        self.model, self.texts, self.max_tokens = model, texts, max_tokens
        self.on_gpu = model.device.type == "cuda"
        self.window = GPU_WINDOW if self.on_gpu else WINDOW
        self.tokenized_together = GPU_TOKENIZED_TOGETHER if self.on_gpu else TOKENIZED_TOGETHER
        self.kind, self.prompt, self.length = kind, model.usage.prompt(kind), model.usage.length(kind)
        self.cut = 0
        """Texts so far that have more tokens than are read."""

    def state(self, fingerprint: str | None) -> dict[str, Any]:
        """All that the bits of the result depend on."""
        if fingerprint is None:
            digest = blake2b(digest_size=8)
            for text in self.texts:
                digest.update(f"{len(text)} {text}".encode())
            fingerprint = digest.hexdigest()
        return {
            "model": self.model.fingerprint,
            "precision": self.model.precision,
            "texts": fingerprint,
            "prompt": self.prompt,
            "length": self.length,
            "max_tokens": self.max_tokens,
        }

    def encode(self, starts: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        coming: deque[tuple[int, list[int], Fetched]] = deque()
        for window in self._computed(starts):
            coming.append(window)
            if len(coming) > self.on_gpu:
                yield self._in_order(*coming.popleft())
        for window in coming:
            yield self._in_order(*window)

    def _computed(self, starts: list[int]) -> Iterator[tuple[int, list[int], Fetched]]:
        """Of each window its start, and its embeddings with the rows that they are of."""
        batches: Iterator[Batch] = (batch for start in starts for batch in self.batches(start))
        if len(starts) > 1 or len(self.texts) > self.tokenized_together:  # one query would wait for the thread to start
            batches = _ahead(batches, GPU_BATCHES_AHEAD if self.on_gpu else 1)
        rows: list[int] = []
        parts: list[torch.Tensor] = []
        for start, some, sequences in batches:
            rows += some
            parts.append(self.model.embed_tokens(sequences))
            if len(rows) == self.size(start):
                yield start, rows, Fetched(torch.cat(parts))
                rows, parts = [], []

    def _in_order(self, start: int, rows: list[int], fetched: Fetched) -> tuple[int, np.ndarray]:
        embeddings = np.empty((len(rows), self.model.hidden_size), dtype=np.float32)
        embeddings[rows] = fetched.get().cpu().numpy()
        check_finite(embeddings)
        return start, embeddings

    def starts(self) -> range:
        return range(0, len(self.texts), self.window)

    def size(self, start: int) -> int:
        return min(self.window, len(self.texts) - start)

    def batches(self, start: int) -> Iterator[Batch]:
        """The window's texts from the shortest on: their tokens are the first to be there."""
        texts = [self.texts[i] for i in range(start, start + self.size(start))]
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts[{start + place}] must be a string, got {type(text).__name__}")
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        batch: list[tuple[int, list[int]]] = []
        tokens = 0
        for first in range(0, len(order), self.tokenized_together):
            rows = order[first : first + self.tokenized_together]
            for row, sequence in zip(rows, self.tokenize([texts[row] for row in rows])):
                if batch and tokens + len(sequence) > self.max_tokens:
                    yield _by_length(start, batch)
                    batch, tokens = [], 0
                batch.append((row, sequence))
                tokens += len(sequence)
        yield _by_length(start, batch)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        ids, cut = self.model.tokenizer.encode_and_count([self.prompt + text for text in texts], self.length)
        self.cut += cut
        return ids

    def say_what_was_cut(self, encoded: int, world: int) -> None:
        """Of all ranks; `encoded` is how many texts this one encoded."""
        counts = torch.tensor([self.cut, encoded])
        if world > 1:
            counts = counts.to(self.model.device if dist.get_backend() == "nccl" else "cpu")
            dist.all_reduce(counts)
        cut, encoded = counts.tolist()
        if cut:
            what = {"query": "queries", "document": "documents", "text": "texts"}[self.kind]
            reading = "%d of %d %s are longer than %d tokens; the rest of them was not read"
            log.warning(reading, cut, encoded, what, self.length)


def _by_length(start: int, batch: list[tuple[int, list[int]]]) -> Batch:
    # Longest first, so that what is left for the last thread that computes is short.
    batch = sorted(batch, key=lambda item: -len(item[1]))
    return start, [row for row, _ in batch], [sequence for _, sequence in batch]


def _ahead(items: Iterator[Item], number: int = 1) -> Iterator[Item]:
    """The same, made by a thread, up to `number` of them while the one before is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = deque(thread.submit(next, items, None) for _ in range(number))
        while (item := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, items, None))
            yield item
