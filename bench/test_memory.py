"""Bytes: kept for the backward (any device), allocated at the peak (GPU), resident in a fresh process (CPU)."""

from dataclasses import replace

import pytest
import torch

from bench.cases import workloads
from bench.cases.layer import LayerCase, step
from bench.cases.memory import peak_allocated, saved_bytes
from bench.contenders.layers import prepare
from bench.harness import resident
from bench.harness.machine import importable
from bench.harness.record import BASELINE, LIMIT, OURS

BASE = LayerCase(backward=True, headline=True)
FP32 = torch.float32


def cases(mode, device):
    quick = [BASE, replace(BASE, dtype=FP32)]
    if mode == "quick":
        return quick
    sizes = [replace(BASE, tokens=512), replace(BASE, hidden=768, ffn=3072), replace(BASE, top_k=1)]
    return quick + [replace(case, headline=False) for case in sizes]


@pytest.fixture
def prepared(case, suite):
    found = prepare(case, suite.device, suite.smoke)
    del found.modules[LIMIT]  # it keeps its own weights' worth: no limit for memory
    return found


def keep(suite, what, case, samples, skipped):
    about = dict(unit="bytes", settings=case.settings(suite.device), skipped=skipped, headline=case.headline)
    suite.keep("memory", f"{what}: {case}", samples, **about)


def saved(prepared):
    x = prepared.x.requires_grad_()
    return {name: [float(saved_bytes(lambda m=m: m(x), m.parameters()))] for name, m in prepared.modules.items()}


def test_saved_for_backward(case, suite, prepared):
    keep(suite, "saved for backward", case, saved(prepared), prepared.skipped)


def test_saved_under_autocast(case, suite, prepared):
    """fp32 parameters and inputs, the experts in bf16: how people train."""
    if case.dtype != FP32:
        pytest.skip("autocast is for fp32 parameters")
    with torch.autocast(suite.device.type, torch.bfloat16):
        samples = saved(prepared)
    keep(suite, "saved under bf16 autocast", case, samples, prepared.skipped)


def test_peak_allocated(case, suite, prepared):
    if suite.device.type != "cuda":
        pytest.skip("PyTorch counts what it allocates on a GPU only")
    samples = {}
    for name, module in prepared.modules.items():
        samples[name] = [float(peak_allocated(step(module, prepared.x, prepared.grad_y), suite.device))]
        module.zero_grad(set_to_none=True)
    keep(suite, "peak allocated", case, samples, prepared.skipped)


def test_resident_in_a_fresh_process(suite):
    """Forward and backward of a big batch, everything included: the weights, the gradients, the interpreter."""
    names = [OURS] if suite.smoke else [OURS, BASELINE, "hf grouped_mm"]
    about = workloads.LAYER.settings(suite.device)
    keep_resident(suite, str(workloads.LAYER), names, "layer_step", settings=about)


def test_resident_while_encoding(suite):
    """Not what the interpreter and the libraries take, but what embedding a corpus adds: see "before_bytes"."""
    pytest.importorskip("moe_retrieval")
    count = {"smoke": 4, "quick": 64, "full": 512}[suite.mode]
    peers = ["sentence-transformers"] if importable("sentence_transformers") and not suite.smoke else []
    keep_resident(suite, f"encode {count} documents bf16", [OURS, *peers], "encode", str(count))


def keep_resident(suite, what, names, workload, *arguments, settings=None):
    if suite.device.type != "cpu" or not resident.STATUS.exists():
        pytest.skip("resident memory is measured on the CPU, under Linux")
    size = "smoke" if suite.smoke else "full"
    peaks = {name: resident.measure(f"bench.cases.workloads:{workload}", name, *arguments, size) for name in names}
    samples = {name: [float(found["peak"])] for name, found in peaks.items()}
    figures = {"before_bytes": {name: found["before"] for name, found in peaks.items()}}
    suite.keep("memory", f"resident: {what}", samples, unit="bytes", settings=settings or {}, figures=figures)
