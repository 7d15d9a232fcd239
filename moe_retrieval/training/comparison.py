"""Runs that are compared: trained alike, each in a process of its own, and measured beside each other."""

import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moe_retrieval import config as configs
from moe_retrieval.config import SCRATCH, TrainConfig
from moe_retrieval.data.collection import Collection
from moe_retrieval.errors import InputError
from moe_retrieval.evaluation.metrics import Measures, evaluate_run, mean_of
from moe_retrieval.evaluation.ranking import bm25_run, embeddings_file, model_run
from moe_retrieval.evaluation.results import kept_run, provenance, write_results
from moe_retrieval.evaluation.table import TESTED, table
from moe_retrieval.files import read_json, write, write_json
from moe_retrieval.models.loading import read_settings
from moe_retrieval.models.precision import for_training
from moe_retrieval.models.usage import reading
from moe_retrieval.retrieval.model import Model, load
from moe_retrieval.training.distributed import running_world
from moe_retrieval.training.resumption import AROUND
from moe_retrieval.training.summary import row_of_start

Runs = dict[str, list[TrainConfig]]
"""Variant -> its runs, a seed each."""

TESTED_AGAINST = ("dense", "dense-wide")
"""A variant with experts that does not beat both owes nothing to them."""


def every(runs: Runs) -> list[TrainConfig]:
    return [run for alike in runs.values() for run in alike]


# Alike.


def settled_precision(runs: Runs) -> Any:
    """One for all: what "auto" was for those that have begun, else what is faster here."""
    (asked,) = {run.precision for run in every(runs)}
    if asked != "auto":
        return asked
    begun = {found["precision"] for found in map(_begun, every(runs)) if found}
    if len(begun) > 1:
        raise InputError(f"there are runs in {' and '.join(sorted(begun))} already: say which --precision")
    with running_world() as world:
        return begun.pop() if begun else for_training(world.device)


def check_begun(runs: Runs) -> None:
    """A run that goes on must end as the others do: what one run may change in between, one of several may not."""
    for run in every(runs):
        found = _begun(run)
        for name, value in asdict(run).items():
            if found and name not in AROUND and found.get(name) != value:
                raise InputError(
                    f"{run.output_dir} was begun with {name} {found.get(name)} (now {value}): give the same flags, "
                    "--resume never, or another --output-dir"
                )


def _begun(run: TrainConfig) -> dict[str, Any]:
    """The flags of a run that is there already; nothing where it begins now."""
    path = Path(run.output_dir) / "config.yaml"
    return configs.read(str(path)) if run.resume != "never" and path.exists() else {}


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


def measure(output: Path, runs: Runs, collection: Collection, command: str) -> str:
    """-> the table, which is also written to README.md, with how it came about."""
    first, split = next(iter(runs.values()))[0], str(collection.held_out)
    qrels = collection.qrels(split)
    size = f"{len(qrels)} queries, {len(collection.documents)} documents"
    print(f"\nmeasuring on the {split} split: {size}", flush=True)
    rows = {"BM25": evaluate_run(qrels, bm25_run(collection, split))}
    columns: dict[str, dict[str, str]] = {f"{TESTED} by seed": {}, "parameters": {}, "active": {}}
    if first.model != SCRATCH:
        usage = read_settings(Path(first.output_dir)).usage
        untouched, start = load(first.model, first.precision).with_usage(**reading(usage)), row_of_start(first.model)
        rows[start] = _measured(untouched, collection, split, output / "untouched")
        columns["parameters"][start], columns["active"][start] = _sizes(untouched)
    for variant, alike in runs.items():
        measured = []
        for run in alike:
            model = load(run.output_dir, run.precision)
            measured.append(_measured(model, collection, split, Path(run.output_dir)))
            columns["parameters"][variant], columns["active"][variant] = _sizes(model)
        rows[variant] = mean_of(measured)
        if len(alike) > 1:
            columns[f"{TESTED} by seed"][variant] = ", ".join(f"{one.means[TESTED]:.3f}" for one in measured)
    written = table(rows, [name for name in TESTED_AGAINST if name in rows], more=columns)
    title = f"{collection.name}, {split} split, whole corpus: {size}"
    write(output / "README.md", f"# {title}\n\n{written}\n\n{_notes(runs)}\n\n`{command}`\n".encode())
    print(f"\n{title}\n\n{written}\n\nalso in {output / 'README.md'}")
    return written


def _measured(model: Model, collection: Collection, split: str, folder: Path) -> Measures:
    """What an earlier call left in the folder, if it is of this model on this collection."""
    qrels, origin = collection.qrels(split), provenance(model, collection, split, "full")
    run = kept_run(folder, origin)
    if run is not None:
        measures = evaluate_run(qrels, run)
    else:
        print(f"ranking with {folder.name}", flush=True)
        run = model_run(model, collection, split, output_dir=folder)
        measures = evaluate_run(qrels, run)
        write_results(folder, run, measures, origin)
    shutil.rmtree(embeddings_file(folder, collection).parent, ignore_errors=True)
    return measures


def _sizes(model: Model) -> tuple[str, str]:
    """-> parameters, and those at work on a token, in millions"""
    total, active = (f"{count / 1e6:.1f}M" for count in model.retriever.count_parameters())
    return total, active


def _notes(runs: Runs) -> str:
    """How the table came about."""
    alike = next(iter(runs.values()))
    first, seeds = alike[0], ", ".join(str(run.seed) for run in alike)
    controlled = next((alike[0].family for alike in runs.values() if alike[0].control_of), None)
    family = f"`dense-wide` and `random` are controls of `{controlled}`." if controlled else ""
    steps = "at most as many steps (--patience)" if first.patience else "as many steps"
    told = f"""Each variant was trained in {first.precision} with the same batches, {steps} and the same rates:
    {first.lr:g} for the backbone, {first.peak_expert_lr:g} for what a variant adds to it. {family}
    Figures are means over the seeds ({seeds}), query by query; p is of a paired randomisation test over queries, the
    interval of a bootstrap over queries, neither of them over seeds."""
    return "\n".join(textwrap.wrap(" ".join(told.split()), 120))
