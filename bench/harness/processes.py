"""A function on several processes of this machine that find each other: gloo on a CPU, nccl on GPUs."""

import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # before a group is made: it keeps for good the one that it finds
import torch.multiprocessing as mp


def why_not(world: int, device: torch.device) -> str | None:
    """Why this many processes cannot share this machine, if they cannot."""
    if device.type == "cuda" and torch.cuda.device_count() < world:
        return f"{world} processes need a GPU each; there are {torch.cuda.device_count()}"
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
    failure = None
    ended = False
    while not ended:
        try:
            ended = processes.join(timeout=0.05)
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            # What the rank raised that was seen to end first, which may only have lost its peer.
            failure = failure or _receive(queue, results)
            raise RuntimeError(failure or str(error)) from error
        failure = failure or _receive(queue, results)
    return [results[rank] for rank in range(world)]


def _receive(queue, results: dict[int, Any]) -> str | None:
    """Fills in what has arrived, up to a failure, which is returned: what comes after it may be cut off."""
    while not queue.empty():
        rank, result, failure = queue.get()
        if failure:
            return f"rank {rank} failed:\n{failure}"
        results[rank] = result
    return None


def _work(rank: int, function, world: int, port: int, threads: int, kind: str, queue, arguments) -> None:
    torch.set_num_threads(threads)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    try:
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", rank=rank, world_size=world)
        queue.put((rank, function(device, *arguments), None))
        dist.barrier()
    except Exception:  # told before the connections close, whose end makes the other ranks fail
        queue.put((rank, None, traceback.format_exc()))
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
