"""A Python process in which Triton compiles: the interpreter, once chosen, compiles nothing."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run(*command, cache=None):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if cache:
        environment["XDG_CACHE_HOME"] = str(cache)
    return subprocess.run([sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True)
