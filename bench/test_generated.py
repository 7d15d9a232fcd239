"""Generated experts, for a prompt and for single tokens, against a loop over passages and batched products."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from bench.cases.generated import BASE, SIZES, prove, step
from bench.cases.memory import saved_bytes
from bench.contenders.generated import CONTENDERS
from bench.harness.peaks import peak_of
from bench.harness.record import BASELINE, OURS
from bench.harness.target import Target

FP32 = torch.float32
PREFILL = [Target(OURS, BASELINE, least=3.0)]


def cases(mode, device):
    quick = [*_each(BASE), replace(BASE, dtype=FP32, backward=True)]
    if mode == "quick":
        return quick
    full = [
        case
        for h, r in SIZES
        for d in (torch.bfloat16, FP32)
        for case in _each(replace(BASE, hidden=h, rank=r, dtype=d))
    ]
    return list(dict.fromkeys([*quick, *full]))


def _each(case):
    return [case, replace(case, backward=True), replace(case, tokens=1)]


def prepared(case, suite):
    case = case.shrunk() if suite.smoke else case
    inputs, grad_y = case.inputs(suite.device)
    grad_y = grad_y if case.backward else None
    prove(CONTENDERS, inputs, grad_y)
    return case, inputs, grad_y


def test_generated(case, suite):
    sized, inputs, grad_y = prepared(case, suite)
    calls = {name: step(contender, inputs, grad_y) for name, contender in CONTENDERS.items()}
    about = dict(settings=case.settings(suite.device), work={"flops": sized.flops, "peak": peak_of(case.dtype)})
    suite.keep("generated", str(case), suite.time(calls), [] if case.decodes else PREFILL, **about)


def test_generated_saved_for_backward(case, suite):
    if not case.backward:
        pytest.skip("nothing is kept without a backward")
    _, inputs, _ = prepared(case, suite)
    leaves = inputs.leaves.values()
    samples = {name: [float(saved_bytes(partial(run, inputs), leaves))] for name, run in CONTENDERS.items()}
    settings = case.settings(suite.device)
    suite.keep("memory", f"saved for backward: {case}", samples, unit="bytes", settings=settings)
