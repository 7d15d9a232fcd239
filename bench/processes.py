"""A function on several processes of this machine that find each other: gloo on a CPU, nccl on GPUs."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def why_not(world: int, device: torch.device) -> str | None:
    """Why this many processes cannot share this machine, if they cannot."""
    if device.type == "cuda" and torch.cuda.device_count() < world:
        return f"{world} processes want a GPU each; there are {torch.cuda.device_count()}"
    return None


def run(function: Callable[..., Any], world: int, threads: int, device: torch.device, *arguments: Any) -> list[Any]:
    """-> what `function(device, *arguments)` returns on each rank. It must be importable, its results picklable."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    job = (function, world, port, threads, device.type, queue, arguments)
    processes = mp.start_processes(_work, job, nprocs=world, join=False, start_method="spawn")
    results: dict[int, Any] = {}
    while len(results) < world:
        if processes.join(timeout=0.05) and queue.empty():  # raises what a rank raised
            break
        while not queue.empty():
            rank, result = queue.get()
            results[rank] = result
    while not processes.join():
        pass
    return [results[rank] for rank in range(world)]


def _work(rank: int, function, world: int, port: int, threads: int, kind: str, queue, arguments) -> None:
    torch.set_num_threads(threads)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", rank=rank, world_size=world)
    try:
        queue.put((rank, function(device, *arguments)))
        dist.barrier()
    finally:
        dist.destroy_process_group()
