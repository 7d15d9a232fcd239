"""A function on several gloo ranks of this machine."""

import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn  # before a group is made: see `moe_retrieval.training.distributed.running_world`
import torch.multiprocessing


def run_ranks(world: int, function, folder: Path) -> list:
    """What function(folder) returns on each rank of a process group; it must be importable.

    One rank is this process, with one thread like the others, and without a process group.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if world == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return [function(str(folder))]
        finally:
            torch.set_num_threads(threads)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    processes = torch.multiprocessing.start_processes(
        _run, (world, port, function, str(folder), queue), nprocs=world, join=False, start_method="spawn"
    )
    results = [queue.get() for _ in range(world)] if not _failed(processes, queue) else []
    while not processes.join():
        pass
    return [result for _, result in sorted(results, key=lambda pair: pair[0])]


def _failed(processes, queue) -> bool:
    """Waits for a first result, or raises what a rank raised."""
    while queue.empty():
        if processes.join(timeout=0.1):
            return queue.empty()
    return False


def _run(rank: int, world: int, port: int, function, folder: str, queue) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    queue.put((rank, function(folder)))
    dist.destroy_process_group()
