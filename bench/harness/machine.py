"""What a result was measured on: the device, the versions, the revision."""

import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import torch

from kernels.cpu.levels import Machine, first_processor

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "torch", "triton", "transformers", "tokenizers", "sentence-transformers", "liger_kernel", "onnxruntime", "openvino",
    "nncf", "ctranslate2", "numpy", "pytest",
)  # fmt: skip

MICROARCHITECTURES = (
    ("AuthenticAMD", 25, range(1, 2), "Zen 3"),
    ("AuthenticAMD", 25, range(16, 32), "Zen 4"),
    ("AuthenticAMD", 25, range(160, 176), "Zen 4"),
    ("AuthenticAMD", 26, range(256), "Zen 5"),
    ("GenuineIntel", 6, (85,), "Skylake or Cascade Lake"),
    ("GenuineIntel", 6, (106,), "Ice Lake"),
    ("GenuineIntel", 6, (143,), "Sapphire Rapids"),
    ("GenuineIntel", 6, (173,), "Granite Rapids"),
    ("GenuineIntel", 6, (207,), "Emerald Rapids"),
)
"""Vendor, family, models, name. Their makers' names are not enough: a Zen 4 and a Zen 5 may both be an "AMD EPYC"."""


def device_model(device: torch.device) -> str:
    """What the maker calls it: "NVIDIA H200", "AMD EPYC (Zen 5), 2 cores"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_model()}, {usable_cores()} cores"


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model(info: Path = Path("/proc/cpuinfo")) -> str:
    """The name that the CPU gives itself and, where it is known, the microarchitecture that it is."""
    about = first_processor(info)
    if not about:
        return platform.processor() or platform.machine()
    name, machine = about.get("model name", platform.machine()), Machine.of(about)
    for vendor, family, models, known in MICROARCHITECTURES:
        if (vendor, family) == (machine.vendor, machine.family) and machine.model in models:
            return f"{name} ({known})"
    return name


def slug(model: str) -> str:
    """A file name for a device.

    >>> slug("AMD EPYC (Zen 5), 2 cores")
    'amd-epyc-zen-5-2-cores'
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
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": versions,
        "revision": revision(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        tuned = os.environ.get("LIGER_FUSED_MOE_AUTOTUNE", "1")  # Liger's own variable and default
        described |= {"capability": f"sm_{major}{minor}", "cuda": torch.version.cuda, "liger_autotune": tuned}
    return described


def name_of(dtype: torch.dtype) -> str:
    """
    >>> name_of(torch.bfloat16)
    'bf16'
    """
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except Exception:  # whatever a parent package fails with, it cannot be used here
        return False
