"""A function on several processes of this machine that find each other: gloo on a CPU, nccl on GPUs."""

import faulthandler
import os
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from moe_retrieval.training import process_group

LIMIT = 900.0
"""Seconds after which processes that have not ended are killed."""


class TimeOver(RuntimeError):
    """Processes were killed because they did not end."""


def why_not(world: int, device: torch.device) -> str | None:
    """Why this many processes cannot share this machine, if they cannot."""
    if device.type == "cuda" and torch.cuda.device_count() < world:
        return f"{world} processes need a GPU each; there are {torch.cuda.device_count()}"
    return None


def run(
    function: Callable[..., Any],
    world: int,
    threads: int,
    device: torch.device,
    *arguments: Any,
    limit: float = LIMIT,
    start: str = "spawn",
) -> list[Any]:
    """-> what `function(device, *arguments)` returns on each rank. It must be importable, its results picklable.

    Every process has ended when this returns or raises, however it ended. `start` is a way of multiprocessing.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = mp.get_context(start).SimpleQueue()
    deadline = time.time() + limit  # by a clock that all processes share
    job = (world, port, threads, device.type, deadline, queue, function, arguments)
    processes = mp.start_processes(_work, job, nprocs=world, join=False, start_method=start)
    try:
        results = _gather(processes, queue, deadline)
    finally:
        for process in processes.processes:
            process.kill()
            process.join()
    if results is None:
        raise TimeOver(f"processes still run after {limit:.0f} s; where they are is on standard error")
    return [results[rank] for rank in range(world)]


def _gather(processes, queue, deadline: float) -> dict[int, Any] | None:
    """-> the results by rank, None where the time is over first; raises what a rank raised."""
    results: dict[int, Any] = {}
    failure = None
    while time.time() < deadline:
        try:
            ended = processes.join(timeout=0.05)
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            # What the rank raised that was seen to end first, which may only have lost its peer.
            failure = failure or _receive(queue, results)
            raise RuntimeError(failure or str(error)) from error
        failure = failure or _receive(queue, results)
        if ended:
            return results
    return None


def _receive(queue, results: dict[int, Any]) -> str | None:
    """Fills in what has arrived, up to a failure, which is returned: what comes after it may be cut off."""
    while not queue.empty():
        rank, result, failure = queue.get()
        if failure:
            return f"rank {rank} failed:\n{failure}"
        results[rank] = result
    return None


def _work(
    rank: int, world: int, port: int, threads: int, kind: str, deadline: float, queue, function, arguments
) -> None:
    faulthandler.dump_traceback_later(max(0.1, 0.9 * (deadline - time.time())))
    torch.set_num_threads(threads)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    backend = "nccl" if kind == "cuda" else "gloo"
    try:
        with process_group.joined(backend, rank=rank, world_size=world):
            try:
                queue.put((rank, function(device, *arguments), None))
                dist.barrier()
            except Exception:  # told before the connections close, whose end makes the other ranks fail
                queue.put((rank, None, traceback.format_exc()))
                raise
    finally:
        faulthandler.cancel_dump_traceback_later()
