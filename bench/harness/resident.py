"""The peak resident memory of a process that does one thing.

    python -m bench.harness.resident bench.cases.workloads:NAME ARGUMENT...      prints {"before": bytes, "peak": bytes}

`NAME(*arguments)` prepares and returns what is to be run; `before` is the peak when that has been done.
"""

import gc
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from bench.harness.machine import ROOT

STATUS = Path("/proc/self/status")
"""Not getrusage: on Linux a new program inherits the peak of the one that started it there."""


def peak_resident() -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def measure(workload: str, *arguments: str) -> dict[str, int]:
    """In a fresh process."""
    command = [sys.executable, "-m", "bench.harness.resident", workload, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    module, _, name = sys.argv[1].partition(":")
    run = getattr(import_module(module), name)(*sys.argv[2:])
    gc.collect()
    before = peak_resident()
    run()
    print(json.dumps({"before": before, "peak": peak_resident()}))


if __name__ == "__main__":
    main()
