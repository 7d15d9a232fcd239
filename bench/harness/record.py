"""What a run leaves behind: one JSON file, with every raw number in it.

    {"format": "moe-retrieval bench 2", "run": {device, versions, revision, time, mode}, "peaks": {...}, "cases": [...]}

Medians and ratios are worked out by the reader, with the methods here. Cases that format 2 took over from files without
rounds have no samples: their medians and fastest calls are among the figures. A case of several fresh processes keeps
the rounds of each in `processes`; its samples are their medians.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.harness.machine import ROOT, slug
from bench.harness.target import Target, Verdict
from bench.harness.timing import Timings, quantile

FORMAT = "moe-retrieval bench 2"
RESULTS = ROOT / "bench" / "results"
OURS, BASELINE, LIMIT = "kernels", "loop", "dense"
"""Contenders by role: what is measured, the loop over experts of the papers, and the most that one could hope for.
What follows the role in a contender's name is another way of it: "loop index_add_", "dense under jemalloc"."""

UNDER = " under "
"""Between a contender's name and that of the allocator, if it is not the usual one."""


@dataclass
class Case:
    """One comparison."""

    group: str
    name: str
    samples: dict[str, list[float]]
    """Contender -> a number a round, in the order in which they were taken; or a number a process. Memory has one."""
    unit: str = "s"
    """"s" (a call) or "bytes", of which less is better, or a measure of quality."""
    ours: str = OURS
    """The contender that the others are compared with; "" where none is."""
    settings: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    """Contender -> why it could not take part."""
    work: dict[str, Any] = field(default_factory=dict)
    """What one call must do at least: "flops", "bytes", and "peak", the name of the limit on flops."""
    fit: dict[str, float] = field(default_factory=dict)
    """Contender -> exponent of its cost, where samples are points of a curve."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What else was found, worked out when it was measured."""
    verdicts: list[Verdict] = field(default_factory=list)
    headline: bool = False
    """Whether the README shows it."""
    chosen: dict[str, str] = field(default_factory=dict)
    """Contender -> how it ran, of the ways that were tried shortly: the fastest."""
    processes: list[dict[str, list[float]]] = field(default_factory=list)
    """The rounds of each fresh process, if there were several; contenders in the order of its rounds."""

    @property
    def timings(self) -> Timings:
        return Timings(self.samples)

    @property
    def peers(self) -> list[str]:
        """What others made: all but ours, its variants, and the limit, which does less work."""
        return [name for name in self.samples if name != self.ours and name.split()[0] not in (OURS, LIMIT)]

    @property
    def best_peer(self) -> str | None:
        return min(self.peers, key=self.timings.median, default=None)

    def best_of(self, role: str) -> str | None:
        """The fastest way of a role."""
        ways = [name for name in self.samples if name.split()[0] == role]
        return min(ways, key=self.timings.median, default=None)

    def range(self, ours: str, peer: str) -> tuple[float, float] | None:
        """The smallest and the largest ratio of a process, if there were several."""
        ratios = self.timings.ratios(ours, peer)
        return (min(ratios), max(ratios)) if self.processes else None

    def spread(self, ours: str, peer: str) -> float | None:
        """By how much the ratio is uncertain, in logarithms: half of its range over processes, or the distance between
        the quartiles of the rounds of one. None where there is one round."""
        if found := self.range(ours, peer):
            return math.log(found[1] / found[0]) / 2
        return self.timings.ratio_spread(ours, peer) if len(self.samples[peer]) > 1 else None


def over_processes(turns: Sequence[Sequence[tuple[str, Case]]]) -> Case:
    """One case of those that fresh processes measured in turns; each process with the allocator that it ran under, the
    usual one first.

    A process's time is the median of its rounds. A contender that a turn lacks is skipped: it has no fair median. What
    one process was found to reach is no verdict on all; other figures are those of the first.
    """
    whole = turns[0][0][1]
    samples: dict[str, list[float]] = {}
    rounds, skipped, ways = [], {}, {}
    for turn in turns:
        for allocator, case in turn:
            under = UNDER + allocator if allocator else ""
            rounds.append({name + under: values for name, values in case.samples.items()})
            skipped |= {name + under: reason for name, reason in case.skipped.items()}
            for name, way in case.chosen.items():
                ways.setdefault(name + under, {})[way] = None
    for process in rounds:
        for name, values in process.items():
            samples.setdefault(name, []).append(quantile(values, 0.5))
    for name in [name for name, medians in samples.items() if len(medians) < len(turns)]:
        skipped[name] = f"took part in {len(samples.pop(name))} of {len(turns)} processes"
    chosen = {name: " or ".join(found) for name, found in ways.items()}
    return replace(whole, samples=samples, skipped=skipped, chosen=chosen, processes=rounds, verdicts=[])


@dataclass
class Run:
    """All cases of one call, and what they were measured on."""

    run: dict[str, Any]
    peaks: dict[str, float]
    cases: list[Case]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"format": FORMAT, "run": self.run, "peaks": self.peaks, "cases": [asdict(c) for c in self.cases]}
        text = json.dumps(_rounded(content), indent=1, ensure_ascii=False)
        text = re.sub(r"\[[\s\d.eE+,-]*\]", lambda match: re.sub(r"\s+", " ", match[0]), text)  # a list on one line
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Run":
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("format") != FORMAT:
            raise ValueError(f"{path}: format must be {FORMAT!r}, got {content.get('format')!r}")
        return cls(content["run"], content["peaks"], [case_of(case) for case in content["cases"]])


def case_of(content: dict[str, Any]) -> Case:
    """The inverse of `asdict`."""
    verdicts = [Verdict(**{**verdict, "target": Target(**verdict["target"])}) for verdict in content["verdicts"]]
    return Case(**{**content, "verdicts": verdicts})


def _rounded(value: Any) -> Any:
    """Five digits are more than any clock is good for."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value


def result_path(device: str, part: str = "") -> Path:
    """Where a whole run's results are kept: of the benchmark, or of the table of targets named `part`.

    >>> result_path("AMD EPYC (Zen 5), 2 cores", "cpu-moe").name
    'amd-epyc-zen-5-2-cores-cpu-moe.json'
    """
    return RESULTS / f"{slug(device)}{part and '-'}{part}.json"


def committed(folder: Path = RESULTS) -> list[Path]:
    """The result files of whole runs on every machine, by name; other files may lie beside them."""
    ours = [path for path in sorted(folder.glob("*.json")) if f'"{FORMAT}"' in path.read_text(encoding="utf-8")[:200]]
    return [path for path in ours if not Run.load(path).run["partial"]]
