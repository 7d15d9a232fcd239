"""A training step with 1 and 2 processes, against transformers and sentence-transformers."""

from dataclasses import dataclass

import pytest

from bench.cases import training
from bench.harness import processes

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
    training.keep(suite, case.count, PAIRS[suite.mode], ROUNDS[suite.mode])
