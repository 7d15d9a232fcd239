"""What a call needs beyond its parameters: bytes kept for the backward, bytes allocated or resident at the peak."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from bench.cases import workloads
from bench.cases.layer import LayerCase
from bench.contenders.layers import Prepared, prepare
from bench.harness import resident
from bench.harness.machine import importable
from bench.harness.record import BASELINE, LIMIT, OURS
from bench.harness.suite import Suite


def prepared(suite: Suite, case: LayerCase) -> Prepared:
    """Without the limit, which keeps its own weights' worth: it is none for memory."""
    found = prepare(case, suite.device, suite.smoke)
    found.modules = {name: module for name, module in found.modules.items() if name.split()[0] != LIMIT}
    return found


def keep(suite: Suite, name: str, measured: Prepared, samples: dict[str, list[float]]) -> None:
    settings = measured.case.settings(suite.device)
    suite.keep("memory", name, samples, unit="bytes", settings=settings, skipped=measured.skipped)


def saved(suite: Suite, case: LayerCase, autocast: bool = False) -> None:
    """For the backward of a layer."""
    found = prepared(suite, case)
    x = found.x.requires_grad_()
    with torch.autocast(suite.device.type, torch.bfloat16) if autocast else nullcontext():
        samples = {name: [float(saved_bytes(lambda m=m: m(x), m.parameters()))] for name, m in found.modules.items()}
    keep(suite, f"saved {'under bf16 autocast' if autocast else 'for backward'}: {case}", found, samples)


def resident_step(suite: Suite) -> None:
    """Forward and backward of a big batch, everything included: the weights, the gradients, the interpreter."""
    names = [OURS, BASELINE, f"{BASELINE} index_add_", "hf grouped_mm"][: 1 if suite.smoke else None]
    settings = workloads.LAYER.settings(suite.device)
    _keep_resident(suite, str(workloads.LAYER), names, "layer_step", settings=settings)


def resident_encoding(suite: Suite, count: int) -> None:
    """Not what the interpreter and the libraries take, but what embedding a corpus adds: see "before_bytes"."""
    peers = ["sentence-transformers"] if importable("sentence_transformers") and not suite.smoke else []
    _keep_resident(suite, f"encode {count} documents bf16", [OURS, *peers], "encode", str(count))


def _keep_resident(suite: Suite, what: str, names: Sequence[str], workload: str, *arguments: str, **about: Any) -> None:
    size, function = "smoke" if suite.smoke else "full", f"bench.cases.workloads:{workload}"
    names = list(suite.taking_part(dict.fromkeys(names)))
    peaks = {name: resident.measure(function, name, *arguments, size) for name in names}
    samples = {name: [float(found["peak"])] for name, found in peaks.items()}
    figures = {"before_bytes": {name: found["before"] for name, found in peaks.items()}}
    suite.keep("memory", f"resident: {what}", samples, unit="bytes", figures=figures, **about)


def saved_bytes(run: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """Bytes that a forward keeps for its backward, each storage once; parameters and their casts left out."""
    parameters = list(parameters)
    own = {p.untyped_storage().data_ptr() for p in parameters}
    casts = {shape for p in parameters for shape in _shapes_of_a_cast(p)}
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and (tuple(tensor.shape), tensor.dtype) not in casts:
            saved[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(storage.nbytes() for storage in saved.values())


def _shapes_of_a_cast(parameter: Tensor) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """How autocast's copy of a parameter, of one expert's part of it, or its transpose looks."""
    halves = [dtype for dtype in (torch.bfloat16, torch.float16) if dtype != parameter.dtype]
    whole = [parameter.shape, parameter.shape[1:]] if parameter.ndim == 3 else [parameter.shape]
    shapes = {tuple(shape) for shape in whole} | {(*shape[:-2], *shape[:-3:-1]) for shape in whole if len(shape) > 1}
    return [(shape, dtype) for shape in shapes for dtype in halves]


def peak_allocated(run: Callable[[], object], device: torch.device) -> int:
    """Bytes of a GPU's memory that a call takes at its peak, above what was there before."""
    run()  # libraries take their workspaces
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
