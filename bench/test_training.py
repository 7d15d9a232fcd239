"""A training step with 1 and 2 processes, against transformers and sentence-transformers."""

from dataclasses import dataclass

import pytest
import torch

from bench.cases import backbone, texts, training
from bench.contenders.our_layer import backend
from bench.harness import processes
from bench.harness.machine import importable, usable_cores

pytest.importorskip("moe_retrieval")
PAIRS = {"smoke": 4, "quick": 8, "full": 64}
ROUNDS = {"smoke": 1, "quick": 5, "full": 7}


@dataclass(frozen=True)
class Processes:
    count: int

    def __str__(self):
        return f"{self.count} process{'es' * (self.count > 1)}"


def cases(mode, device):
    return [Processes(1), Processes(2)]


def test_training_step(case, suite):
    reason = processes.why_not(case.count, suite.device)
    if reason:
        pytest.skip(reason)
    folder, pairs = backbone.folder(suite.smoke), PAIRS[suite.mode]
    job = training.Job(folder, pairs, ROUNDS[suite.mode])
    if case.count == 1:
        samples = training.measure(suite.device, job)
    else:
        threads = max(1, usable_cores() // case.count)
        samples = processes.run(training.measure, case.count, threads, suite.device, job)[0]
    skipped = {}
    if case.count > 1:
        skipped["sentence-transformers"] = "its loss needs its own trainer for several processes"
    elif not importable("sentence_transformers"):
        skipped["sentence-transformers"] = "is not importable"
    settings = {
        "backbone": backbone.name(suite.smoke),
        "texts": texts.source(),
        "backend": backend(suite.device, torch.bfloat16),
        "pairs": pairs,
        "processes": case.count,
    }
    name = f"training step, {pairs} pairs, {case} bf16"
    suite.keep("model", name, samples, settings=settings, skipped=skipped, headline=True)
