"""What a run leaves behind: one JSON file, with every raw number in it.

    {"format": "moe-retrieval bench 2", "run": {device, versions, revision, time, mode}, "peaks": {...}, "cases": [...]}

Medians and ratios are worked out by the reader, with the methods here. Cases that format 2 took over from files without
rounds have no samples: their medians and fastest calls are among the figures.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.harness.machine import ROOT, slug
from bench.harness.target import Target, Verdict
from bench.harness.timing import Timings

FORMAT = "moe-retrieval bench 2"
RESULTS = ROOT / "bench" / "results"
OURS, BASELINE, LIMIT = "kernels", "loop", "dense"
"""Contenders by role: what is measured, the loop over experts of the papers, and the most that one could hope for."""


@dataclass
class Case:
    """One comparison."""

    group: str
    name: str
    samples: dict[str, list[float]]
    """Contender -> a number a round, in the order in which they were taken. Memory has one round."""
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

    @property
    def timings(self) -> Timings:
        return Timings(self.samples)

    @property
    def peers(self) -> list[str]:
        """What others made: all but ours, its variants, and the limit, which does less work."""
        return [name for name in self.samples if name not in (self.ours, LIMIT) and not name.startswith(OURS)]

    @property
    def best_peer(self) -> str | None:
        return min(self.peers, key=self.timings.median, default=None)


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
        return cls(content["run"], content["peaks"], [_case(case) for case in content["cases"]])


def _case(content: dict[str, Any]) -> Case:
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
    return [path for path in sorted(folder.glob("*.json")) if f'"{FORMAT}"' in path.read_text(encoding="utf-8")[:200]]
