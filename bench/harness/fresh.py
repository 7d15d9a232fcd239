"""A fresh process that does one thing.

python -m bench.harness.fresh bench.cases.workloads:NAME ARGUMENT...      prints what NAME(*arguments) returns, as JSON
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.harness.machine import ROOT


def call(function: str, *arguments: str, **environment: str) -> Any:
    """-> what the function returned there; RuntimeError with the end of its standard error where it failed."""
    return json.loads(last_line([sys.executable, "-m", "bench.harness.fresh", function, *arguments], **environment))


def last_line(command: Sequence[str], folder: Path = ROOT, **environment: str) -> str:
    """Of what the command printed."""
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed in {folder}:\n{done.stderr[-2000:]}")
    if not done.stdout.strip():
        raise RuntimeError(f"{' '.join(command[1:])} printed nothing in {folder}")
    return done.stdout.splitlines()[-1]


def named(function: str) -> Any:
    """
    >>> named("math:floor")(2.5)
    2
    """
    module, _, name = function.partition(":")
    return getattr(import_module(module), name)


def main() -> None:
    print(json.dumps(named(sys.argv[1])(*sys.argv[2:])))


if __name__ == "__main__":
    main()
