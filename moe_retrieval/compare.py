"""python -m moe_retrieval.compare: variants trained alike, measured beside each other."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import tyro

from moe_retrieval import config as configs
from moe_retrieval.bounds import flag
from moe_retrieval.cli import parse, run_command, to_arguments
from moe_retrieval.config import CONTROLS, OF_EXPERTS, SCRATCH, TrainConfig
from moe_retrieval.errors import InputError
from moe_retrieval.files import read_json, write, write_json
from moe_retrieval.locks import locked

if TYPE_CHECKING:
    from moe_retrieval.data import Collection
    from moe_retrieval.evaluation.metrics import Measures
    from moe_retrieval.retrieval.model import Model

TESTED_AGAINST = ("dense", "dense-wide")
"""A variant with experts that does not beat both owes nothing to them."""

PRESETS = {
    name: {key: value for key, value in preset.items() if key != "variant"}
    | {"variants": f"dense,dense-wide,random,{preset['variant']}"}
    for name, preset in configs.PRESETS.items()
}
"""Those of training, with the controls of what they train."""


@dataclass
class CompareConfig(TrainConfig):
    """Trains variants alike, each with the same seeds, and measures them beside BM25 and the untouched backbone.

    What training can be told goes to every run; what is said of experts, to the runs that have some. Each run is a
    directory below --output-dir. The same command again goes on where it was stopped.
    """

    variants: str = "dense,dense-wide,random,sb-moe"
    """What `train` takes as --variant, with commas between. dense-wide and random are the controls of --control-of."""
    variant: Annotated[str, tyro.conf.Suppress] = "dense"  # type: ignore[assignment]
    seeds: int = 1
    """Runs of each variant: with --seed, with --seed + 1, and so on."""
    output_dir: str = "runs/compare"
    """Where the runs lie, and the table, in README.md."""

    def runs(self) -> dict[str, list[TrainConfig]]:
        """By variant."""
        if self.variant != "dense":
            raise InputError(f"--variant is for train: a comparison takes --variants, got {self.variant!r}")
        if self.no_eval:
            raise InputError("--no-eval is for train: a comparison measures")
        if self.resume not in ("auto", "never"):
            raise InputError(f"--resume must be auto or never: there are several runs; got {self.resume!r}")
        if self.seeds < 1:
            raise InputError(f"--seeds must be at least 1, got {self.seeds}")
        names = self._names()
        family = self._family(names)
        runs = {name: [self._run(name, family, self.seed + step) for step in range(self.seeds)] for name in names}
        for name in (*OF_EXPERTS, "control_of"):
            if getattr(self, name) is not None and all(getattr(first, name) is None for first, *_ in runs.values()):
                raise InputError(f"{flag(name)} is for none of --variants {','.join(names)}")
        return runs

    def _names(self) -> list[str]:
        known = get_args(get_type_hints(TrainConfig)["variant"])
        names = [name.strip() for name in self.variants.split(",")]
        for name in names:
            if name not in known:
                raise InputError(f"--variants: expected some of {', '.join(known)}, with commas between; got {name!r}")
        if len(set(names)) < len(names):
            raise InputError(f"--variants: each variant once, got {self.variants}")
        return names

    def _family(self, names: list[str]) -> str:
        """Of the controls: that of the variant with experts, if there is one."""
        routed = [name for name in names if name not in ("dense", *CONTROLS)]
        if self.control_of is None and len(routed) > 1 and set(names) & set(CONTROLS):
            raise InputError(f"--control-of {' or '.join(routed)}: of which are the controls among --variants?")
        return self.control_of or (routed[0] if routed else "sb-moe")

    def _run(self, variant: str, family: str, seed: int) -> TrainConfig:
        given = {field.name: getattr(self, field.name) for field in fields(TrainConfig)}
        folder = Path(self.output_dir) / f"{variant}-seed{seed}"
        given |= {"variant": variant, "seed": seed, "output_dir": str(folder), "no_eval": True}
        given["control_of"] = family if variant in CONTROLS else None
        run = TrainConfig(**given)
        senseless = {"dense": OF_EXPERTS, "sb-moe": ("layers",), "moe": ("combine",)}
        for name in senseless[run.family]:
            setattr(run, name, None)
        run.check()
        return run


def compare(config: CompareConfig) -> str:
    """What the command does; -> the table."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("compare starts processes of its own: call it without torchrun")
    config = replace(config, precision=_settled_precision(config))
    runs = config.runs()
    import kernels
    from moe_retrieval import data

    collection = data.load(config.dataset, config.data_dir)
    if collection.held_out is None:
        raise InputError(f"--dataset {config.dataset} has neither a test split nor a dev split to compare on")
    with locked(config.output_dir):
        every = [run for alike in runs.values() for run in alike]
        for run in every:
            _check_begun(run)
        _check_collection(config, collection)
        for run in every:
            _train_apart(run)
        with kernels.use_backend(config.backend):
            return _measure_all(config, runs, collection)


def _begun(run: TrainConfig) -> dict[str, Any]:
    """The flags of a run that is there already; nothing where it begins now."""
    path = Path(run.output_dir) / "config.yaml"
    return configs.read(str(path)) if run.resume != "never" and path.exists() else {}


def _settled_precision(config: CompareConfig) -> Any:
    """One for all runs: what "auto" was for those that have begun, else what is faster here."""
    runs = config.runs()
    if config.precision != "auto":
        return config.precision
    from kernels import dispatch
    from moe_retrieval.models.precision import fastest
    from moe_retrieval.training.distributed import running_world

    begun = {found["precision"] for alike in runs.values() for run in alike if (found := _begun(run))}
    if len(begun) > 1:
        raise InputError(f"{config.output_dir} has runs in {' and '.join(sorted(begun))}: say which --precision")
    with running_world() as world:
        return begun.pop() if begun else fastest(dispatch.get("eager"), world.device)


def _check_collection(config: CompareConfig, collection: "Collection") -> None:
    """What was trained on before is what is trained on now: documentation changes with what is installed."""
    path = Path(config.output_dir) / "collection.json"
    now = {"name": collection.name, "fingerprint": collection.fingerprint}
    before = read_json(path) if config.resume != "never" and path.exists() else now
    if before != now:
        told = f"{config.output_dir} was begun on other data ({before}, now {now})"
        raise InputError(f"{told}: --resume never, or another --output-dir")
    write_json(path, now)


def _check_begun(run: TrainConfig) -> None:
    """A run that goes on must end as the others do: what one run may change in between, one of several may not."""
    from moe_retrieval.training.resumption import AROUND

    if not (found := _begun(run)):
        return
    for name, value in asdict(run).items():
        if name not in AROUND and found.get(name) != value:
            raise InputError(
                f"{run.output_dir} was begun with {name} {found.get(name)} (now {value}): give the same flags, "
                "--resume never, or another --output-dir"
            )


def _train_apart(run: TrainConfig) -> None:
    """In a process of its own, so that runs share no memory; in one that is whole, nothing is left to train."""
    command = [sys.executable, "-m", "moe_retrieval.train", *to_arguments(TrainConfig, asdict(run), "compare")]
    with subprocess.Popen(command) as process, _passing_on(signal.SIGTERM, process):
        try:
            status = process.wait()
        except KeyboardInterrupt:  # which the run got too: it saves itself, in longer than Python would wait
            process.wait()
            raise
    if status:
        raise SystemExit(status if status > 0 else 128 - status)


@contextmanager
def _passing_on(number: int, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """The signal goes to the process, which ends in its own way; elsewhere than in the main thread, nothing does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, lambda number, frame: process.send_signal(number))
    try:
        yield
    finally:
        signal.signal(number, before)


def _measure_all(config: CompareConfig, runs: dict[str, list[TrainConfig]], collection: "Collection") -> str:
    from moe_retrieval.evaluation.metrics import evaluate_run, mean_of
    from moe_retrieval.evaluation.ranking import bm25_run
    from moe_retrieval.evaluation.table import TESTED, table
    from moe_retrieval.models.usage import reading
    from moe_retrieval.retrieval.model import load
    from moe_retrieval.training.summary import row_of_start

    output, split = Path(config.output_dir), str(collection.held_out)
    qrels = collection.qrels(split)
    size = f"{len(qrels)} queries, {len(collection.documents)} documents"
    print(f"\nmeasuring on the {split} split: {size}", flush=True)
    rows = {"BM25": evaluate_run(qrels, bm25_run(collection, split))}
    start = row_of_start(config.model)
    columns: dict[str, dict[str, str]] = {f"{TESTED} by seed": {}, "parameters": {}, "active": {}}
    for variant, alike in runs.items():
        measured = []
        for run in alike:
            model = load(run.output_dir, run.precision)
            if start not in rows and config.model != SCRATCH:
                untouched = load(config.model, run.precision).with_usage(**reading(model.usage))
                rows[start] = _measured(untouched, collection, split, output / "untouched")
                columns["parameters"][start], columns["active"][start] = _sizes(untouched)
            measured.append(_measured(model, collection, split, Path(run.output_dir)))
            columns["parameters"][variant], columns["active"][variant] = _sizes(model)
        rows[variant] = mean_of(measured)
        if len(alike) > 1:
            columns[f"{TESTED} by seed"][variant] = ", ".join(f"{one.means[TESTED]:.3f}" for one in measured)
    against = [name for name in TESTED_AGAINST if name in rows]
    written = table(rows, against, more=columns)
    title = f"{collection.name}, {split} split, whole corpus: {size}"
    write(output / "README.md", f"# {title}\n\n{written}\n\n{_notes(config, runs)}".encode())
    print(f"\n{title}\n\n{written}\n\nalso in {output / 'README.md'}")
    return written


def _measured(model: "Model", collection: "Collection", split: str, folder: Path) -> "Measures":
    """What an earlier call left in the folder, if it is of this model on this collection."""
    from moe_retrieval.evaluation.metrics import evaluate_run
    from moe_retrieval.evaluation.ranking import embeddings_file, model_run
    from moe_retrieval.evaluation.results import kept_run, provenance, write_results

    qrels, origin = collection.qrels(split), provenance(model, collection, split, "full")
    run = kept_run(folder, origin)
    if run is None:
        print(f"ranking with {folder.name}", flush=True)
        run = model_run(model, collection, split, output_dir=folder)
        write_results(folder, run, evaluate_run(qrels, run), origin)
    shutil.rmtree(embeddings_file(folder, collection).parent, ignore_errors=True)
    return evaluate_run(qrels, run)


def _sizes(model: "Model") -> tuple[str, str]:
    """-> parameters, and those at work on a token, in millions"""
    total, active = (f"{count / 1e6:.1f}M" for count in model.retriever.count_parameters())
    return total, active


def _notes(config: CompareConfig, runs: dict[str, list[TrainConfig]]) -> str:
    """How the table came about."""
    first = [alike[0] for alike in runs.values()]
    seeds = ", ".join(str(run.seed) for run in next(iter(runs.values())))
    family = next(
        (f"`dense-wide` and `random` are controls of `{run.family}`. " for run in first if run.control_of), ""
    )
    steps = "at most as many steps (--patience)" if config.patience else "as many steps"
    default = CompareConfig()
    changed = {name: value for name, value in asdict(config).items() if value != getattr(default, name)}
    changed.pop("output_dir", None)
    command = shlex.join(["python", "-m", "moe_retrieval.compare", *to_arguments(CompareConfig, changed, "compare")])
    told = f"""Each variant was trained in {config.precision} with the same batches, {steps} and the same rates:
    {config.lr:g} for the backbone, {config.peak_expert_lr:g} for what a variant adds to it. {family}
    Figures are means over the seeds ({seeds}), query by query; p is of a paired randomisation test over queries, the
    interval of a bootstrap over queries, neither of them over seeds."""
    return "\n".join([*textwrap.wrap(" ".join(told.split()), 120), "", f"`{command}`", ""])


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    compare(parse(CompareConfig, arguments, "python -m moe_retrieval.compare", PRESETS))


if __name__ == "__main__":
    run_command(main)
