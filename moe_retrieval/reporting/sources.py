"""What there is to report on: what compare, train, evaluate and analyze left in a folder and below it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_retrieval import config as configs
from moe_retrieval.errors import InputError
from moe_retrieval.files import read_object

COMPARISON, METRICS, ANALYSIS, LOG = "comparison.json", "metrics.json", "analysis.json", "log.jsonl"

NEEDED = {
    COMPARISON: ("collection", "fingerprint", "documents", "queries", "domains", "systems", "command"),
    METRICS: ("run",),
    ANALYSIS: ("run", "layers", "load", "redundancy", "removal", "findings", "queries", "gains", "losses"),
}
"""What each of them has had since there is one."""

OF_SYSTEM = ("seeds", "folders", "measures", "by_domain", "interval", "p_against", "costs")

Found = dict[str, Any]


@dataclass(frozen=True)
class Analysis:
    label: str
    folder: Path
    found: Found


@dataclass(frozen=True)
class Sources:
    folder: Path
    comparison: Found | None = None
    metrics: Found | None = None
    """Of a single run or evaluation"""
    runs: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    """System -> the folders of its runs, a seed each, as far as they are there"""
    analyses: Sequence[Analysis] = ()

    @property
    def split(self) -> str:
        """That which counts, of a comparison."""
        assert self.comparison is not None
        return next(iter(self.comparison["queries"]))

    def flags(self) -> Mapping[str, Any]:
        """What the runs were told, as the first of them that kept it says: all have the same data set."""
        every = [run / "config.yaml" for runs in self.runs.values() for run in runs]
        kept = next((path for path in every if path.is_file()), None)
        return {} if kept is None else configs.read(str(kept))

    def colors(self) -> dict[str, int]:
        """A system has the same one everywhere; of what was not trained, one below zero."""
        if self.comparison is None:
            return {name: place for place, name in enumerate(self.runs)}
        systems = self.comparison["systems"]
        trained = [name for name, system in systems.items() if system["seeds"]]
        others = [name for name in systems if name not in trained]
        return {name: place for place, name in enumerate(trained)} | {name: ~place for place, name in enumerate(others)}


def read_sources(folder: Path, analyses: Sequence[str] = ()) -> Sources:
    """`analyses` are more folders of analyze."""
    if not folder.is_dir():
        raise InputError(f"--input {folder} is no directory")
    comparison = _read(folder / COMPARISON)
    metrics = None if comparison else _read(folder / METRICS)
    below = [path.parent for path in sorted(folder.rglob(ANALYSIS))]
    given = [Path(name) for name in analyses]
    for each in given:
        if not (each / ANALYSIS).is_file():
            raise InputError(f"--analyses {each}: holds no {ANALYSIS}, which python -m moe_retrieval.analyze writes")
    told = {each.resolve(): each for each in [*below, *given]}
    found = [Analysis(_label(each, folder), each, _analysis(each / ANALYSIS)) for each in told.values()]
    if not (comparison or metrics or found):
        raise InputError(
            f"--input {folder} holds nothing to report on: expected {COMPARISON} (of compare), {METRICS} (of train or "
            f"evaluate) or {ANALYSIS} (of analyze)"
        )
    return Sources(folder, comparison, metrics, _runs(folder, comparison), found)


def _label(analysis: Path, folder: Path) -> str:
    """Where it lies, from the folder of all; the folder's own name for what lies right there."""
    inside = analysis.is_relative_to(folder) and analysis != folder
    return str(analysis.relative_to(folder)) if inside else analysis.resolve().name


def _runs(folder: Path, comparison: Found | None) -> dict[str, list[Path]]:
    if comparison is None:
        return {folder.resolve().name: [folder]} if (folder / LOG).is_file() else {}
    listed = {name: [folder / run for run in system["folders"]] for name, system in comparison["systems"].items()}
    return {name: there for name, runs in listed.items() if (there := [run for run in runs if run.is_dir()])}


def _read(path: Path) -> Found | None:
    if not path.is_file():
        return None
    found = read_object(path)
    missing = [name for name in NEEDED[path.name] if name not in found]
    missing += [] if isinstance(found.get("run", {}), dict) else ["run"]
    if path.name == COMPARISON and not missing:
        missing = _missing_of_systems(found["systems"])
    if missing:
        raise InputError(f"cannot read {path}: it has no {missing[0]!r}; the command that wrote it writes it anew")
    return found


def _missing_of_systems(systems: Any) -> list[str]:
    if not isinstance(systems, dict) or not systems:
        return ["systems"]
    return [name for system in systems.values() for name in OF_SYSTEM if name not in system]


def _analysis(path: Path) -> Found:
    found = _read(path)
    assert found is not None
    return found


def finite(value: Any) -> float | None:
    """What a line can be drawn through: of a loss that is no number, a gap."""
    return value if isinstance(value, int | float) and abs(value) < float("inf") else None


def as_json(content: Any) -> bytes:
    """Small, and JSON for any reader."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
