"""Processes that a suite started and that outlive it, orphans included: each inherits a mark in its environment."""

import os
import time
from pathlib import Path

NAME = "MOE_RETRIEVAL_TESTS"
PROC = Path("/proc")
HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
"""They end with the process that started them, and are of the standard library."""


def mark() -> str:
    """What every process that is started from now on inherits."""
    os.environ[NAME] = value = f"{os.getpid()}-{time.time_ns()}"
    return value


def alive(value: str) -> dict[int, str]:
    """-> the commands of living processes that inherited this mark, by their number; none where there is no /proc"""
    wanted, found = f"{NAME}={value}".encode(), {}
    for folder in PROC.glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rsplit(") ", 1)[1][0]
            environment = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # it has ended, or is another user's
            continue
        if wanted in environment and state != "Z" and not any(helper in command for helper in HELPERS):
            found[int(folder.name)] = command
    return found


def outliving(value: str, seconds: float = 5.0) -> dict[int, str]:
    """As `alive`, of those that do not end within some seconds."""
    deadline = time.monotonic() + seconds
    while (found := alive(value)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found
