"""Bytes: kept for the backward (any device), allocated at the peak (GPU), resident in a fresh process (CPU)."""

from dataclasses import replace

import pytest
import torch

from bench.cases import memory
from bench.cases.layer import LayerCase, step
from bench.harness import resident

BASE = LayerCase(backward=True)
FP32 = torch.float32


def cases(mode, device):
    quick = [BASE, replace(BASE, dtype=FP32)]
    if mode == "quick":
        return quick
    return [*quick, replace(BASE, tokens=512), replace(BASE, hidden=768, ffn=3072), replace(BASE, top_k=1)]


def test_saved_for_backward(case, suite):
    memory.saved(suite, case)


def test_saved_under_autocast(case, suite):
    """fp32 parameters and inputs, the experts in bf16: how people train."""
    if case.dtype != FP32:
        pytest.skip("autocast is for fp32 parameters")
    memory.saved(suite, case, autocast=True)


def test_peak_allocated(case, suite):
    if suite.device.type != "cuda":
        pytest.skip("PyTorch counts what it allocates on a GPU only")
    prepared = memory.prepared(suite, case)
    samples = {}
    for name, module in prepared.modules.items():
        run = step(module, prepared.x, prepared.grad_y)
        samples[name] = [float(memory.peak_allocated(run, suite.device))]
        module.zero_grad(set_to_none=True)
    memory.keep(suite, f"peak allocated: {case}", prepared, samples)


needs_status = pytest.mark.skipif(not resident.STATUS.exists(), reason="resident memory is measured under Linux")


@needs_status
def test_resident_in_a_fresh_process(suite):
    on_cpu(suite)
    memory.resident_step(suite)


@needs_status
def test_resident_while_encoding(suite):
    on_cpu(suite)
    memory.resident_encoding(suite, {"smoke": 4, "quick": 64, "full": 512}[suite.mode])


def on_cpu(suite):
    if suite.device.type != "cpu":
        pytest.skip("resident memory is measured on the CPU")
