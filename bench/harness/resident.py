"""The peak resident memory of a fresh process that does one thing."""

import gc
from pathlib import Path

from bench.harness import fresh

STATUS = Path("/proc/self/status")
"""Not getrusage: on Linux a new program inherits the peak of the one that started it there."""


def peak_resident() -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def measure(workload: str, *arguments: str) -> dict[str, int]:
    """Bytes: `workload(*arguments)` prepares and returns what is to be run; `before` is the peak when that is done."""
    return fresh.call("bench.harness.resident:peaks_of", workload, *arguments)


def peaks_of(workload: str, *arguments: str) -> dict[str, int]:
    """Of this process."""
    run = fresh.named(workload)(*arguments)
    gc.collect()
    before = peak_resident()
    run()
    return {"before": before, "peak": peak_resident()}
