"""Several processes, and a fresh one for its memory."""

import os
import signal
import threading
import time

import pytest
import torch
import torch.distributed as dist

from bench.harness import processes, resident

CPU = torch.device("cpu")


def rank_and_sum(device, start):
    total = torch.tensor(start + dist.get_rank())
    dist.all_reduce(total)
    return dist.get_rank(), total.item(), torch.get_num_threads()


def fail_on_the_second(device):
    if dist.get_rank() == 1:
        threading.Timer(60, int).start()  # this process outlives its connections: the first is seen to fail first
        raise ValueError("the second cannot")


def kill_the_second(device):
    dist.barrier()
    time.sleep(1)  # else the first could fail, because it still waits for its peer
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def test_each_rank_returns():
    assert processes.run(rank_and_sum, 2, 1, CPU, 10) == [(0, 21, 1), (1, 21, 1)]


def test_a_rank_that_fails_ends_all():
    with pytest.raises(RuntimeError, match=r"rank 1 failed(.|\n)*ValueError: the second cannot") as caught:
        processes.run(fail_on_the_second, 2, 1, CPU)
    assert "the second cannot" not in str(caught.value.__cause__)  # it was the other one's failure that ended the run


def test_a_rank_that_is_killed_ends_all():
    with pytest.raises(RuntimeError, match="SIGKILL"):
        processes.run(kill_the_second, 2, 1, CPU)


def stay(device):
    dist.barrier()
    time.sleep(600)


@pytest.mark.slow
def test_ranks_that_do_not_end_are_killed(capfd):
    with pytest.raises(processes.TimeOver, match="still run after 12 s"):
        processes.run(stay, 2, 1, CPU, limit=12)
    assert "in stay" in capfd.readouterr().err


def hold(megabytes):
    """What a process is to do for `resident.measure`."""
    return lambda: torch.ones(int(megabytes) * 2**18)


@pytest.mark.skipif(not resident.STATUS.exists(), reason="the peak is read from Linux's /proc")
def test_the_peak_of_a_fresh_process():
    ballast = torch.ones(2**27)  # half a gigabyte here is nothing to the other process
    found = resident.measure("tests.bench.test_processes:hold", "100")
    assert found["peak"] - found["before"] == pytest.approx(100 * 2**20, rel=0.1)
    assert found["peak"] < ballast.nbytes + 100 * 2**20
    with pytest.raises(RuntimeError, match="ValueError"):
        resident.measure("tests.bench.test_processes:hold", "much")
