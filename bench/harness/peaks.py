"""The limits of a device, measured rather than looked up."""

from collections.abc import Callable

import torch

from bench.harness import onednn
from bench.harness.machine import name_of
from bench.harness.timing import interleave


def peaks(device: torch.device, dtypes: tuple[torch.dtype, ...], small: bool = False) -> dict[str, float]:
    """The best that this device was seen to do: FLOP/s of a matrix product in each type, bytes/s of a copy."""
    found = {}
    for dtype in dtypes:
        sizes = [(64, 64, 64)] if small else _gemm_sizes(device)
        found[peak_of(dtype)] = max(_gemm_rate(size, dtype, device, small) for size in sizes)
    count = 2**12 if small else 2**28 if device.type == "cuda" else 2**26
    source = torch.ones(count, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    found["copy"] = 2 * source.nbytes / _fastest({"copy": lambda: target.copy_(source)}, device, small)
    return found


def _gemm_sizes(device: torch.device) -> list[tuple[int, int, int]]:
    if device.type == "cuda":
        return [(4096, 4096, 4096), (8192, 8192, 8192), (16384, 3072, 768)]
    return [(1024, 1024, 1024), (2048, 2048, 2048), (4096, 1536, 384), (1024, 384, 1536)]


def _gemm_rate(size: tuple[int, int, int], dtype: torch.dtype, device: torch.device, small: bool) -> float:
    """torch.mm and, on a CPU, oneDNN, which torch calls for some types only: the faster one is the limit."""
    rows, columns, inner = size
    x, weight = torch.randn(rows, inner, device=device).to(dtype), torch.randn(columns, inner, device=device).to(dtype)
    calls: dict[str, Callable[[], object]] = {"mm": lambda: x @ weight.T}
    if onednn.available(device):
        calls["onednn"] = lambda: onednn.linear(x, weight)
    return 2 * rows * columns * inner / _fastest(calls, device, small)


def _fastest(calls: dict[str, Callable[[], object]], device: torch.device, small: bool) -> float:
    working = {}
    for name, call in calls.items():
        try:
            call()
            working[name] = call
        except RuntimeError:  # a type that this library has no product for
            continue
    budget = dict(seconds=0.0, min_rounds=2) if small else dict(seconds=0.3, min_rounds=5)
    timings = interleave(working, device=device, **budget)
    return min(timings.minimum(name) for name in working)


def peak_of(dtype: torch.dtype) -> str:
    """The limit on the FLOP/s of this type, as `peaks` names it."""
    return f"gemm_{name_of(dtype)}"
