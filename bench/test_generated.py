"""Generated experts, for a prompt and for single tokens, against a loop over passages and batched products."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from bench.cases.generated import BASE, SIZES
from bench.cases.memory import saved_bytes
from bench.cases.timed_generated import each, measure, prepared
from bench.contenders.generated import CONTENDERS

FP32 = torch.float32


def cases(mode, device):
    quick = [*each(BASE), replace(BASE, dtype=FP32, backward=True)]
    if mode == "quick":
        return quick
    full = [
        case
        for h, r in SIZES
        for d in (torch.bfloat16, FP32)
        for case in each(replace(BASE, hidden=h, rank=r, dtype=d))
    ]
    return list(dict.fromkeys([*quick, *full]))


def test_generated(case, suite):
    measure(suite, case)


def test_generated_saved_for_backward(case, suite):
    if not case.backward:
        pytest.skip("nothing is kept without a backward")
    _, inputs, _ = prepared(case, suite)
    leaves = inputs.leaves.values()
    samples = {name: [float(saved_bytes(partial(run, inputs), leaves))] for name, run in CONTENDERS.items()}
    settings = case.settings(suite.device)
    suite.keep("memory", f"saved for backward: {case}", samples, unit="bytes", settings=settings)
