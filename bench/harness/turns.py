"""Cases of several fresh processes each, and a run of such cases, which goes on where it was stopped."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness.machine import ROOT
from bench.harness.record import Case, Run, over_processes, result_path

PARTS = ROOT / ".benchmarks"
"""Where a run lies until it is whole: it may not replace the file that the README quotes."""
SAME = ("device", "versions", "revision", "mode", "processes", "allocators", "level")
"""What two parts of one run have in common."""

Measure = Callable[[int, str, Mapping[str, str]], Case]
"""The case in a fresh process: which one it is, the allocator that it runs under ("" for the usual one), and how each
library was at its best, where an earlier process has found out."""


def over_turns(measure: Measure, processes: int, allocators: Sequence[str] = ()) -> Case:
    """`allocators`: those besides the usual one."""
    turns = []
    chosen: dict[str, dict[str, str]] = {}  # under each allocator, by the first process
    for turn in range(processes):
        parts = []
        for allocator in ("", *allocators):
            case = measure(turn, allocator, chosen.get(allocator, {}))
            chosen.setdefault(allocator, case.chosen)
            parts.append((allocator, case))
        turns.append(parts)
    return over_processes(turns)


@dataclass
class GrowingRun:
    """Written after each case, and moved to the results when it is whole."""

    run: Run
    names: Sequence[str]
    """Of the cases of a whole run, in its order."""
    whole: Path

    @classmethod
    def begin(cls, about: dict[str, Any], part: str, names: Sequence[str]) -> "GrowingRun":
        """What there is of such a run. Files that differ from their commit may differ from each other: none goes on."""
        whole = result_path(str(about["device"]), part)
        paths = [] if about["revision"].endswith("-changed") else [PARTS / whole.name, whole]
        found = [Run.load(path) for path in paths if path.exists()]
        same = (run for run in found if all(run.run.get(key) == about.get(key) for key in SAME))
        return cls(next(same, Run(about, {}, [])), names, whole)

    def left(self, only: str = "") -> list[str]:
        """Cases that are not there; or all of those whose names contain this, again."""
        done = {case.name for case in self.run.cases}
        return [name for name in self.names if only in name and (only or name not in done)]

    def keep(self, case: Case) -> None:
        done = {kept.name: kept for kept in self.run.cases} | {case.name: case}
        self.run.cases = [done[name] for name in self.names if name in done]
        self.run.run["partial"] = len(self.run.cases) < len(self.names)
        self.run.save(self.path)
        if not self.run.run["partial"]:
            (PARTS / self.whole.name).unlink(missing_ok=True)

    @property
    def path(self) -> Path:
        """Where it lies."""
        return PARTS / self.whole.name if self.run.run["partial"] else self.whole
