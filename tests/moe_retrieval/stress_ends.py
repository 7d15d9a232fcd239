"""Many short lives of two ranks, to see that each one ends.

    python -m tests.moe_retrieval.stress_ends [--times 1000] [--seed 0] [--reducer-last]

A rank takes a few steps of a small model in DDP and leaves its group with work under way and the model still held.
`--reducer-last` leaves in the order that `moe_retrieval.training.process_group` avoids: how often that hangs tells what
the other figure is worth.
"""

import argparse
import gc
import multiprocessing
import random

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import kernels
from bench.harness import processes
from moe_retrieval.training import process_group

CPU = torch.device("cpu")
KEPT: list[object] = []


def live(device: torch.device, seed: int, reducer_last: bool) -> int:
    """-> how many steps it took"""
    draw = random.Random(seed)  # both ranks do the same
    width, steps = draw.choice((8, 64, 512)), draw.randrange(1, 4)
    model = nn.Sequential(nn.Linear(8, width), kernels.MoE(width, 16, num_experts=4, top_k=2), nn.Linear(width, 8))
    parallel = DistributedDataParallel(model, bucket_cap_mb=0.01)  # several buckets
    for _ in range(steps):
        (parallel(torch.randn(5, 8)).square().mean() + kernels.aux_loss(model)).backward()
    for _ in range(draw.randrange(3)):
        KEPT.append(dist.all_reduce(torch.ones(draw.choice((1, 100_000))), async_op=True))
    if draw.random() < 0.5:
        KEPT.clear()
    KEPT.append(parallel)
    if reducer_last:
        process_group._leave = _leave_reducer_last
    return steps


def _leave_reducer_last() -> None:
    dist.destroy_process_group()
    KEPT.clear()
    gc.collect()


def count_hangs(times: int, seed: int, limit: float, reducer_last: bool = False) -> int:
    """-> how many of so many lives did not end within `limit` seconds"""
    multiprocessing.set_forkserver_preload(
        ["tests.moe_retrieval.stress_ends", "kernels.losses", "torch._dynamo"]
    )  # once, not in each
    hangs = 0
    with tqdm(range(seed, seed + times), desc="lives") as bar:
        for number in bar:
            try:
                processes.run(live, 2, 1, CPU, number, reducer_last, limit=limit, start="forkserver")
            except processes.TimeOver:
                hangs += 1
                bar.set_postfix(hangs=hangs)
    return hangs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds a life may take (default: 60)")
    parser.add_argument("--reducer-last", action="store_true")
    chosen = parser.parse_args()
    hangs = count_hangs(chosen.times, chosen.seed, chosen.limit, chosen.reducer_last)
    print(f"{chosen.times - hangs} of {chosen.times} ended")
    raise SystemExit(hangs > 0)


if __name__ == "__main__":
    main()
