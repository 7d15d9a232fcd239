"""Processes that a suite started and that outlive it: children of any kind, and orphans that inherited a mark."""

import os
import time
from pathlib import Path
from typing import NamedTuple

NAME = "MOE_RETRIEVAL_TESTS"
PROC = Path("/proc")
HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "torch/_inductor/compile_worker")
"""They end with the process that started them; they are of the standard library and of torch."""


class Process(NamedTuple):
    parent: int
    marks: list[bytes]
    """Of the environment it was started with. A fork has its parent's: it is found by its parent."""
    command: str


class Mark(NamedTuple):
    value: str
    before: frozenset[int]
    """Children that were there already."""


def mark() -> Mark:
    """What every process that is started from now on inherits."""
    os.environ[NAME] = value = f"{os.getpid()}-{time.time_ns()}"
    return Mark(value, frozenset(_descendants(_processes())))


def alive(given: Mark) -> dict[int, str]:
    """-> the commands of living processes that were started since, by their number; none where there is no /proc"""
    processes, wanted = _processes(), f"{NAME}={given.value}".encode()
    found = {pid for pid, process in processes.items() if wanted in process.marks}
    found |= set(_descendants(processes)) - given.before
    return {
        pid: processes[pid].command
        for pid in sorted(found - {os.getpid()})
        if not any(helper in processes[pid].command for helper in HELPERS)
    }


def outliving(given: Mark, seconds: float = 5.0) -> dict[int, str]:
    """As `alive`, of those that do not end within some seconds."""
    deadline = time.monotonic() + seconds
    while (found := alive(given)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _processes() -> dict[int, Process]:
    """The living ones of this user."""
    found = {}
    for folder in PROC.glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rsplit(") ", 1)[1].split()[:2]
            environment = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # it has ended, or is another user's
            continue
        if state != "Z":
            marks = [entry for entry in environment if entry.startswith(NAME.encode())]
            found[int(folder.name)] = Process(int(parent), marks, command)
    return found


def _descendants(processes: dict[int, Process]) -> list[int]:
    found = [os.getpid()]
    for ancestor in found:  # which grows
        found += [pid for pid, process in processes.items() if process.parent == ancestor]
    return found[1:]
