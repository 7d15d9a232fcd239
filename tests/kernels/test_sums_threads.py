"""The statistics of a layer that several threads share."""

import pickle
import sys
import threading

import pytest
import torch

import kernels
from kernels.sums import RouterSums

THREADS, FORWARDS = 6, 300


@pytest.fixture
def hurried():
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(work):
    barrier = threading.Barrier(THREADS)

    def run():
        barrier.wait()
        work()

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_lose_no_sum(hurried):
    sums = RouterSums(2)
    one_L = torch.ones(6)
    in_threads(lambda: [sums.add(one_L, False) for _ in range(FORWARDS)])
    assert sums.take().tolist() == [THREADS * FORWARDS] * 6
    assert sums.take_counts().tolist() == [THREADS * FORWARDS] * 2


def test_threads_that_take_sums_lose_none(hurried):
    """Half of them through `take_counts`: what `take` has taken, it still counts."""
    sums, taken = RouterSums(1), []

    def work():
        for _ in range(FORWARDS):
            sums.add(torch.ones(4), False)
            sums.take()
            taken.append(sums.take_counts())

    in_threads(work)
    assert torch.stack(taken).sum().item() == THREADS * FORWARDS


@pytest.mark.filterwarnings("ignore:100 forwards wait")
def test_threads_that_share_a_layer(hurried, device):
    layer, x, forwards = kernels.MoE(4, 4, num_experts=2, top_k=1).to(device), torch.randn(3, 4, device=device), 40
    in_threads(lambda: [layer(x) for _ in range(forwards)])
    assert layer.sums.take_counts().sum().item() == THREADS * forwards * 3


def test_a_layer_can_be_pickled():
    layer = kernels.MoE(4, 4, num_experts=2, top_k=1)
    layer(torch.randn(3, 4))
    again = pickle.loads(pickle.dumps(layer))
    again(torch.randn(5, 4))
    assert again.sums.take_counts().sum().item() == 5
