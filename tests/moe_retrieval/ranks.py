"""A function on several gloo ranks of this machine."""

from pathlib import Path

import torch

from bench.harness import processes


def run_ranks(world: int, function, folder: Path) -> list:
    """What function(folder) returns on each rank of a process group; it must be importable.

    One rank is this process, with one thread like the others, and without a process group.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if world > 1:
        return processes.run(_in_folder, world, 1, torch.device("cpu"), function, str(folder))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [function(str(folder))]
    finally:
        torch.set_num_threads(threads)


def _in_folder(device, function, folder: str):
    return function(folder)
