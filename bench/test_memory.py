"""Bytes: kept for the backward (any device), allocated at the peak (GPU), resident in a fresh process (CPU)."""

from dataclasses import replace

import pytest
import torch

from bench import resident, workloads
from bench.correct import prove
from bench.layer_case import LayerCase, contenders, importable, step
from bench.memory import peak_allocated, saved_bytes
from bench.record import BASELINE, LIMIT, OURS

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
    """-> the case as it is run, x, the gradient of y, the modules, and who is not among them"""
    sized = case.shrunk() if suite.smoke else case
    layer = sized.build(suite.device)
    x, grad_y = sized.inputs(layer)
    modules, skipped = contenders(sized, layer)
    del modules[LIMIT]  # it keeps its own weights' worth: no limit for memory
    modules, refused = prove(sized, layer, modules, x, grad_y, strict=suite.smoke)
    return sized, x, grad_y, modules, skipped | refused


def keep(suite, what, case, samples, skipped):
    about = dict(unit="bytes", settings=case.settings(suite.device), skipped=skipped, headline=case.headline)
    suite.keep("memory", f"{what}: {case}", samples, **about)


def test_saved_for_backward(case, suite, prepared):
    _, x, _, modules, skipped = prepared
    x = x.requires_grad_()
    samples = {name: [float(saved_bytes(lambda m=m: m(x), m.parameters()))] for name, m in modules.items()}
    keep(suite, "saved for backward", case, samples, skipped)


def test_saved_under_autocast(case, suite, prepared):
    """fp32 parameters and inputs, the experts in bf16: how people train."""
    _, x, _, modules, skipped = prepared
    if case.dtype != FP32:
        pytest.skip("autocast is for fp32 parameters")
    x = x.requires_grad_()
    with torch.autocast(suite.device.type, torch.bfloat16):
        samples = {name: [float(saved_bytes(lambda m=m: m(x), m.parameters()))] for name, m in modules.items()}
    keep(suite, "saved under bf16 autocast", case, samples, skipped)


def test_peak_allocated(case, suite, prepared):
    if suite.device.type != "cuda":
        pytest.skip("PyTorch counts what it allocates on a GPU only")
    _, x, grad_y, modules, skipped = prepared
    samples = {}
    for name, module in modules.items():
        samples[name] = [float(peak_allocated(step(module, x, grad_y), suite.device))]
        module.zero_grad(set_to_none=True)
    keep(suite, "peak allocated", case, samples, skipped)


def test_resident_in_a_fresh_process(suite):
    """Forward and backward of a big batch, everything included: the weights, the gradients, the interpreter."""
    names = [OURS] if suite.smoke else [OURS, BASELINE, "hf grouped_mm"]
    about = workloads.LAYER.settings(suite.device)
    keep_resident(suite, str(workloads.LAYER), names, "layer_step", settings=about)


def test_resident_while_encoding(suite):
    """Not what the interpreter and the libraries take, but what embedding a corpus adds: see "before"."""
    pytest.importorskip("moe_retrieval")
    count = {"smoke": 4, "quick": 64, "full": 512}[suite.mode]
    rivals = ["sentence-transformers"] if importable("sentence_transformers") and not suite.smoke else []
    keep_resident(suite, f"encode {count} documents bf16", [OURS, *rivals], "encode", str(count))


def keep_resident(suite, what, names, workload, *arguments, settings=None):
    if suite.device.type != "cpu" or not resident.STATUS.exists():
        pytest.skip("resident memory is measured on the CPU, under Linux")
    size = "smoke" if suite.smoke else "full"
    peaks = {name: resident.measure(f"bench.workloads:{workload}", name, *arguments, size) for name in names}
    samples = {name: [float(found["peak"])] for name, found in peaks.items()}
    before = {name: found["before"] for name, found in peaks.items()}
    suite.keep("memory", f"resident: {what}", samples, unit="bytes", settings=(settings or {}) | {"before": before})
