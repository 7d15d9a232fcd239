"""A process that leaves its group ends, whatever it leaves behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.moe_retrieval import stress_ends

WORLD = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1", CUDA_VISIBLE_DEVICES="")

A_RUN = """
from pathlib import Path
import torch
from torch.nn.parallel import DistributedDataParallel
from moe_retrieval.training.distributed import running_world

def threads():
    return {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}

with running_world():
    parallel = DistributedDataParallel(torch.nn.Linear(2, 2))
    parallel(torch.ones(2)).sum().backward()
    inside = threads()
print(any("gloo" in name for name in inside), any("gloo" in name for name in threads()))
"""

SLOW_TENSORS = """
import threading, time
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from moe_retrieval.training import process_group

class Slow(torch.Tensor):
    def __del__(self):
        if threading.current_thread() is not threading.main_thread():  # the group's, which holds the group's lock
            time.sleep(0.2)

def use():
    parallel = DistributedDataParallel(torch.nn.Linear(2, 2))
    parallel(torch.ones(2)).sum().backward()
    for _ in range(20):  # whoever ends later frees it: this thread, or the group's
        dist.all_reduce(torch.ones(2).as_subclass(Slow), async_op=True)
    return parallel

"""
LEAVING = (
    SLOW_TENSORS
    + """
with process_group.joined("gloo"):
    parallel = use()
print("left")
"""
)
REDUCER_LAST = (
    SLOW_TENSORS
    + """
dist.init_process_group("gloo")
parallel = use()
dist.destroy_process_group()
del parallel
print("left")
"""
)


def python(code, seconds):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=os.environ | WORLD, capture_output=True, text=True, timeout=seconds)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the names of threads are read from Linux's /proc")
def test_no_thread_of_a_group_outlives_it():
    """One that does can abort the process while its interpreter ends. A module that is still held keeps none."""
    run = python(A_RUN, 120)
    assert run.stdout.split() == ["True", "False"], run.stderr


def test_a_group_whose_thread_still_frees_a_tensor_is_left():
    assert python(LEAVING, 120).stdout == "left\n"


def hangs(code):
    try:
        python(code, 20)
    except subprocess.TimeoutExpired:
        return True
    return False


@pytest.mark.slow
def test_a_reducer_that_goes_last_hangs():
    """What `process_group` is for: the day this fails, torch has mended it. On a busy machine the group's thread may
    have freed its tensors before, so there are five attempts."""
    assert any(hangs(REDUCER_LAST) for _ in range(5))


@pytest.mark.slow
def test_ends_under_stress():
    assert stress_ends.count_hangs(times=50, seed=0, limit=60) == 0
