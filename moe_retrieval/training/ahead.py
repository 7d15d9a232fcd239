"""Batches for a GPU: made while it is busy with those before, in memory that it reads by itself."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from moe_retrieval.models.packed import PackedTokens
from moe_retrieval.training.feed import Feed
from moe_retrieval.training.step import Batch


class Ahead:
    """A feed whose batches are asked for one after the other: a thread makes the `depth` that follow.

    A batch is a function of its number, so it does not matter who makes it, nor when.
    """

    def __init__(self, feed: Feed, device: torch.device, depth: int = 1):
        self.feed, self.depth = feed, depth
        # a thread begins with the first GPU as its own, and would take memory there
        self.thread = ThreadPoolExecutor(1, "batches", initializer=torch.cuda.set_device, initargs=(device,))
        self.coming: deque[tuple[int, Future[Batch]]] = deque()

    def batch(self, number: int) -> Batch:
        if self.coming and self.coming[0][0] != number:
            self.coming.clear()
        first = number + len(self.coming)
        for following in range(first, number + self.depth + 1):
            self.coming.append((following, self.thread.submit(self._make, following)))
        return self.coming.popleft()[1].result()

    def _make(self, number: int) -> Batch:
        batch = self.feed.batch(number)
        queries, documents = (PackedTokens(side).pinned() for side in (batch.queries, batch.documents))
        return Batch(queries, documents, batch.targets.pinned())

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *error: object) -> None:
        self.thread.shutdown(cancel_futures=True)
