"""Runs that are compared: trained alike, each in a process of its own, and measured beside each other."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moe_retrieval import config as configs
from moe_retrieval.config import SCRATCH, TrainConfig
from moe_retrieval.data.collection import Collection
from moe_retrieval.errors import InputError, changes
from moe_retrieval.evaluation.figure import draw_sweep
from moe_retrieval.evaluation.findings import Findings, Row
from moe_retrieval.evaluation.page import headline, page
from moe_retrieval.evaluation.systems import System
from moe_retrieval.evaluation.table import p_of
from moe_retrieval.files import read_json, write, write_json
from moe_retrieval.models.loading import read_settings
from moe_retrieval.models.precision import for_training
from moe_retrieval.models.usage import reading
from moe_retrieval.progress import Meter
from moe_retrieval.retrieval.model import load
from moe_retrieval.training.contest import Contest
from moe_retrieval.training.distributed import running_world
from moe_retrieval.training.measured import measure_bm25, measure_model, training_costs, with_fit
from moe_retrieval.training.resumption import AROUND
from moe_retrieval.training.summary import row_of_start

UNTOUCHED = "untouched"
"""The folder of what is measured of the backbone as it is"""

Points = dict[str, dict[Any, System]]
"""Variant -> value of the sweep -> what became of it"""


# Alike.


def settled_precision(contest: Contest) -> Any:
    """One for all: what "auto" was for those that have begun, else what is faster here."""
    (asked,) = {run.precision for run in contest.every()}
    if asked != "auto":
        return asked
    begun = {found["precision"] for found in map(_begun, contest.every()) if found}
    if len(begun) > 1:
        raise InputError(f"there are runs in {' and '.join(sorted(begun))} already: say which --precision")
    with running_world() as world:
        return begun.pop() if begun else for_training(world.device)


def check_begun(contest: Contest) -> None:
    """A run that goes on must end as the others do: what one run may change in between, one of several may not."""
    for run in contest.every():
        bound = {name: value for name, value in asdict(run).items() if name not in AROUND}
        found = _begun(run)
        if found and (changed := changes(found, bound)):
            raise InputError(
                f"{run.output_dir} was begun with {changed}: give the same flags, --resume never, or another "
                "--output-dir"
            )


def _begun(run: TrainConfig) -> dict[str, Any]:
    """The flags of a run that is there already; nothing where it begins now."""
    path = Path(run.output_dir) / "config.yaml"
    return configs.DEFAULTS | configs.read(str(path)) if run.resume != "never" and path.exists() else {}


def check_collection(output: Path, collection: Collection, resume: str) -> None:
    """What was trained on before is what is trained on now: documentation changes with what is installed."""
    path = output / "collection.json"
    now = {"name": collection.name, "fingerprint": collection.fingerprint}
    before = read_json(path) if resume != "never" and path.exists() else now
    if before != now:
        told = f"{output} was begun on other data ({before}, now {now})"
        raise InputError(f"{told}: --resume never, or another --output-dir")
    write_json(path, now)


# Trained.


def train_apart(flags: list[str]) -> None:
    """In a process of its own, so that runs share no memory; in one that is whole, nothing is left to train."""
    command = [sys.executable, "-m", "moe_retrieval.train", *flags]
    with subprocess.Popen(command) as process, _passing_on(signal.SIGTERM, process):
        try:
            status = process.wait()
        except KeyboardInterrupt:  # which the run got too: it saves itself, in longer than Python would wait
            process.wait()
            raise
    if status:
        raise SystemExit(status if status > 0 else 128 - status)


@contextmanager
def _passing_on(number: int, process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """The signal goes to the process, which ends in its own way; elsewhere than in the main thread, nothing does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, lambda number, frame: process.send_signal(number))
    try:
        yield
    finally:
        signal.signal(number, before)


# Measured.


def measure(output: Path, contest: Contest, collection: Collection, command: str) -> str:
    """-> the first table of README.md, which has all of them; comparison.json has every figure."""
    asked, splits = with_fit(collection)
    size = f"{len(asked.qrels(splits[0]))} queries, {len(asked.documents)} documents"
    print(f"\nmeasuring on the {splits[0]} split: {size}", flush=True)
    systems = _systems(output, contest, asked, splits)
    findings = _tested(contest, systems, _points(contest, systems, asked, splits), asked, splits)
    title = f"{collection.name}, {splits[0]} split, whole corpus: {size}"
    if findings.swept:
        draw_sweep(output, findings)
    about = {"command": command, "precision": contest.first.precision}
    write_json(output / "comparison.json", about | findings.as_json())
    write(output / "README.md", page(findings, title, _notes(contest), command).encode())
    written = headline(findings)
    print(f"\n{title}\n\n{written}\n\nalso in {output / 'README.md'}, with all other measures")
    return written


def _systems(output: Path, contest: Contest, asked: Collection, splits: Sequence[str]) -> dict[str, System]:
    """By name: BM25, the untouched backbone, and each variant."""
    first = contest.first
    systems = [System("BM25", [measure_bm25(asked, splits)])]
    if first.model != SCRATCH:
        usage = read_settings(Path(first.output_dir)).usage
        untouched = load(first.model, first.precision).with_usage(**reading(usage))
        measured = measure_model(untouched, asked, splits, output / UNTOUCHED)
        systems.append(System(row_of_start(first.model), [measured], folders=[UNTOUCHED]))
    systems += [_trained(variant, alike, asked, splits) for variant, alike in contest.runs.items()]
    return {system.name: system for system in systems}


def _points(contest: Contest, systems: dict[str, System], asked: Collection, splits: Sequence[str]) -> Points:
    """Of the sweep; where a variant has the value anyway, it is what was measured already."""
    points: Points = {}
    for variant, by_value in contest.swept.items():
        for value, alike in by_value.items():
            is_there = alike == contest.runs[variant]
            name = f"{variant}, {contest.flag} {value}"
            point = systems[variant] if is_there else _trained(name, alike, asked, splits)
            points.setdefault(variant, {})[value] = point
    return points


def _trained(name: str, alike: list[TrainConfig], asked: Collection, splits: Sequence[str]) -> System:
    measured = []
    for run in alike:
        one = measure_model(load(run.output_dir, run.precision), asked, splits, Path(run.output_dir))
        measured.append(one.with_costs(training_costs(run)))
    return System(name, measured, [run.seed for run in alike], [Path(run.output_dir).name for run in alike])


def _tested(
    contest: Contest, systems: dict[str, System], points: Points, asked: Collection, splits: Sequence[str]
) -> Findings:
    """Every system against dense and dense-wide; what was swept, against those with the same value."""
    rows: dict[str, Row] = {}
    swept: dict[str, dict[Any, Row]] = {}
    opponents = {name: systems[name] for name in contest.opponents()}
    with Meter("testing differences", len(systems) + sum(map(len, points.values())), "systems") as meter:
        for name, system in systems.items():
            rows[name] = _against(system, opponents, splits[0])
            meter.advance()
        for variant, by_value in points.items():
            theirs = contest.opponents(contest.runs[variant][0].family)
            for value, system in by_value.items():
                same = {
                    str(run.variant): points.get(name, {}).get(value, systems[name]) for name, run in theirs.items()
                }
                swept.setdefault(variant, {})[value] = _against(system, same, splits[0])
                meter.advance()
    return Findings(asked, splits, rows, contest.setting, swept)


def _against(system: System, opponents: dict[str, System], split: str) -> Row:
    mean = system.mean(split)
    return Row(system, {name: p_of(mean, opponent.mean(split)) for name, opponent in opponents.items()})


def _notes(contest: Contest) -> str:
    """How the table came about."""
    first = contest.first
    seeds = ", ".join(str(run.seed) for run in next(iter(contest.runs.values())))
    families = dict.fromkeys(alike[0].family for alike in contest.runs.values() if alike[0].control_of)
    named = " and of ".join(f"`{name}`" for name in families)
    controls = f"`dense-wide` and `random` are controls of {named}." if named else ""
    steps = "at most as many steps (--patience)" if first.patience else "as many steps"
    return f"""Each variant was trained in {first.precision} with the same batches, {steps} and the same rates:
    {first.lr:g} for the backbone, {first.peak_expert_lr:g} for what a variant adds to it. {controls}
    Figures are means over the seeds ({seeds}), query by query; p is of a paired randomisation test over queries, the
    interval of a bootstrap over queries, neither of them over seeds."""
