"""One training step, from token ids to changed weights: ours and what people use today, from the same weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from bench.cases import backbone, texts
from bench.contenders import our_model, sentence_transformers, transformers
from bench.contenders.our_layer import backend
from bench.contenders.training_loop import PEERS_ATTENTION_DROPOUT, Pairs, StepCall
from bench.harness import processes
from bench.harness.machine import importable, usable_cores
from bench.harness.record import OURS
from bench.harness.suite import Suite
from bench.harness.timing import interleave

TOLERANCE = 0.05
"""Of the loss, in bf16, against transformers in fp32."""


MAKERS: dict[str, Callable[[Pairs, bool], StepCall]] = {
    OURS: our_model.training_step("dense"),
    f"{OURS} sb-moe": our_model.training_step("sb-moe"),
    f"{OURS} moe": our_model.training_step("moe"),
    "transformers": transformers.training_step,
    "sentence-transformers": sentence_transformers.training_step,
}
ROUTED: dict[str, Callable[[Pairs, bool], StepCall]] = {
    f"{OURS} dense": our_model.training_step("dense"),
    f"{OURS} moe top-1": our_model.training_step("moe", top_k=1),
    f"{OURS} moe top-2": our_model.training_step("moe", top_k=2),
}
"""Ours with experts in the encoder and without, beside each other."""


@dataclass(frozen=True)
class Job:
    """What is trained on: a share of `pairs` in each process."""

    folder: Path
    pairs: int
    rounds: int
    contenders: tuple[str, ...]
    """Of `MAKERS` or `ROUTED`, in the order in which they take turns."""


def keep(suite: Suite, count: int, pairs: int, rounds: int) -> None:
    """A step by `count` processes, which share the cores."""
    skipped = {}
    if count > 1:
        skipped["sentence-transformers"] = "its loss needs its own trainer for several processes"
    elif not importable("sentence_transformers"):
        skipped["sentence-transformers"] = "is not importable"
    names = tuple(suite.taking_part({name: None for name in MAKERS if name not in skipped}))
    job = Job(backbone.folder(suite.smoke), pairs, rounds, names)
    if count == 1:
        samples = measure(suite.device, job)
    else:
        threads = max(1, usable_cores() // count)
        samples = processes.run(measure, count, threads, suite.device, job)[0]
    settings = {"backbone": backbone.name(suite.smoke), "texts": texts.source(), "backend": backend(suite.device)}
    settings |= {"pairs": pairs, "processes": count, "peers' attention dropout": PEERS_ATTENTION_DROPOUT}
    name = f"training step, {pairs} pairs, {count} process{'es' * (count > 1)} bf16"
    suite.keep("model", name, samples, settings=settings, skipped=skipped)


def measure(device: torch.device, job: Job) -> dict[str, list[float]]:
    """-> seconds of each step, by contender. Every rank calls this; all take the same number of steps."""
    size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    makers = {name: (MAKERS | ROUTED)[name] for name in job.contenders}
    sides = our_model.token_ids(job.folder, texts.queries(job.pairs), texts.documents(job.pairs))
    every, own = (
        Pairs(job.folder, *[side[part] for side in sides], device) for part in (slice(None), slice(rank, None, size))
    )
    truth_of_all, truth_of_own = transformers.loss_in_fp32(every), transformers.loss_in_fp32(own)
    steps = {}
    for name, make in makers.items():
        loss, truth = make(own, False)().double(), truth_of_own
        if name.startswith(OURS):  # whose negatives are those of all ranks
            loss, truth = _mean_over_ranks(loss), truth_of_all
        assert abs(loss.item() - truth) <= TOLERANCE * truth, f"{name}: the loss is {loss:.4f}, not {truth:.4f}"
        steps[name] = make(own, True)
    # A fixed number of rounds: ranks that stopped by their own clocks would wait for each other.
    how = dict(seconds=0.0, min_rounds=job.rounds, min_sample=0.0, warm_ups=1)
    return interleave(steps, device=device, **how).seconds


def _mean_over_ranks(value: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value
