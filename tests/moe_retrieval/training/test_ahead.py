"""Batches that a thread makes are those of the feed, in time and in pinned memory."""

import threading

import pytest
import torch

from moe_retrieval.models.packed import PackedTokens
from moe_retrieval.training.ahead import Ahead
from tests.moe_retrieval.steps import ALONE, make_batch

GPU = torch.device("cuda", 1)


class Feed:
    """Which batches were made, and by whom."""

    def __init__(self, broken=None):
        self.made, self.threads, self.broken = [], set(), broken

    def batch(self, number):
        if number == self.broken:
            raise ValueError(f"no batch {number}")
        self.made.append(number)
        self.threads.add(threading.current_thread())
        return make_batch(ALONE, number, 5, 2)


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """-> the devices that threads took for their own, and the tensors that were pinned."""
    devices, pinned = [], []
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    return devices, pinned


@pytest.mark.parametrize("depth", [1, 3])
def test_a_batch_is_that_of_the_feed(depth, gpu):
    devices, pinned = gpu
    feed = Feed()
    with Ahead(feed, GPU, depth) as ahead:
        for number in range(5):
            batch, expected = ahead.batch(number), make_batch(ALONE, number, 5, 2)
            assert isinstance(batch.queries, PackedTokens)
            assert list(batch.queries) == expected.queries
            assert list(batch.documents) == expected.documents
            assert torch.equal(batch.targets.keys_NC, expected.targets.keys_NC)
            assert torch.equal(batch.targets.relevant_NR, expected.targets.relevant_NR)
            assert batch.targets.counts == expected.targets.counts
            for tensor in (
                batch.queries.ids_T,
                batch.documents.ids_T,
                batch.targets.keys_NC,
                batch.targets.relevant_NR,
            ):
                assert any(tensor is each for each in pinned)
    assert feed.made[:5] == [0, 1, 2, 3, 4]
    assert len(feed.made) <= 5 + depth
    assert devices == [GPU]
    assert threading.current_thread() not in feed.threads
    assert not any(thread.is_alive() for thread in feed.threads)


def test_the_next_one_is_made_before_it_is_asked_for():
    feed = Feed()
    with Ahead(feed, GPU) as ahead:
        ahead.batch(7)
        ahead.coming[0][1].result(timeout=60)
        assert feed.made == [7, 8]


def test_another_than_the_next_is_made_too():
    """As where a run goes on at a step of its own."""
    with Ahead(Feed(), GPU, depth=2) as ahead:
        for number in (3, 4, 90, 91, 5):
            assert list(ahead.batch(number).queries) == make_batch(ALONE, number, 5, 2).queries


def test_what_goes_wrong_is_said_when_the_batch_is_asked_for():
    with Ahead(Feed(broken=1), GPU) as ahead:
        ahead.batch(0)
        with pytest.raises(ValueError, match="no batch 1"):
            ahead.batch(1)
