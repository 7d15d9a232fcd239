"""What a result was measured on: the device, the versions, the revision, and the device's own measured limits."""

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

from bench.timing import interleave

ROOT = Path(__file__).parent.parent
PACKAGES = ("torch", "triton", "transformers", "tokenizers", "sentence-transformers", "liger_kernel", "numpy", "pytest")


def device_model(device: torch.device) -> str:
    """What the maker calls it: "NVIDIA H200", "AMD EPYC, 2 cores"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_model()}, {usable_cores()} cores"


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def slug(model: str) -> str:
    """A file name for a device.

    >>> slug("AMD EPYC 9B45, 2 cores")
    'amd-epyc-9b45-2-cores'
    """
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((R|TM)\)", "", model, flags=re.IGNORECASE).lower()).strip("-")


def revision() -> str:
    """The commit, marked where the measured code differs from it; $BENCH_REVISION where there is no repository."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", "kernels", "moe_retrieval", "bench", ":!bench/results")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("BENCH_REVISION", "unknown")
    return f"{commit}-changed" if changed else commit


def short(revision: str) -> str:
    """
    >>> short("ac0a608b11dbd8b9e1f0a7e0c5a1b2c3d4e5f607-changed")
    'ac0a608-changed'
    """
    commit, dash, changed = revision.partition("-")
    return commit[:7] + dash + changed


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def describe(device: torch.device) -> dict[str, object]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    described = {
        "device": device_model(device),
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": versions,
        "revision": revision(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        described |= {"capability": f"sm_{major}{minor}", "cuda": torch.version.cuda}
    return described


def peaks(device: torch.device, dtypes: tuple[torch.dtype, ...], small: bool = False) -> dict[str, float]:
    """The best that this device was seen to do: FLOP/s of a matrix product in each type, bytes/s of a copy."""
    found = {}
    for dtype in dtypes:
        sizes = [(64, 64, 64)] if small else _gemm_sizes(device)
        found[f"gemm_{name_of(dtype)}"] = max(_gemm_rate(size, dtype, device, small) for size in sizes)
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
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        calls["onednn"] = lambda: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
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


def name_of(dtype: torch.dtype) -> str:
    """
    >>> name_of(torch.bfloat16)
    'bf16'
    """
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
