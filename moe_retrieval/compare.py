"""python -m moe_retrieval.compare: variants trained alike, measured beside each other."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

import tyro

from moe_retrieval import presets
from moe_retrieval.bounds import flag
from moe_retrieval.cli import parse, run_command, to_arguments
from moe_retrieval.config import CONTROLS, OF_EXPERTS, SENSELESS, TrainConfig
from moe_retrieval.errors import InputError
from moe_retrieval.locks import locked
from moe_retrieval.training.contest import NAMED, Contest, Runs, Sweep, effective

PRESETS = {name: preset.flags_of_comparison for name, preset in presets.PRESETS.items()}


NOT_SWEPT = (
    "dataset", "data_dir", "columns", "model", "variant", "control_of", "output_dir", "precision", "seed", "resume",
    "backend", "no_eval",
)  # fmt: skip
"""What all runs of a comparison share, or have another flag for."""


class Entrant(NamedTuple):
    """One of those that are compared."""

    label: str
    folder: str
    """What its runs' directories begin with"""
    changes: dict[str, Any]
    """What its runs are told that others are not"""


@dataclass
class CompareConfig(TrainConfig):
    """Trains variants alike, each with the same seeds, and measures them beside BM25 and the untouched backbone.

    What training can be told goes to every run; what is said of experts, to the runs that have some. Each run is a
    directory below --output-dir. The same command again goes on where it was stopped.
    """

    variants: str = "dense,dense-wide,random,sb-moe"
    """What `train` takes as --variant, and sb-moe-all (sb-moe with --top-k all), with commas between. dense-wide and
    random are the controls of --control-of, or of each kind of experts among the others."""
    variant: Annotated[str, tyro.conf.Suppress] = "dense"  # type: ignore[assignment]
    seeds: int = 1
    """Runs of each variant: with --seed, with --seed + 1, and so on."""
    sweep: str | None = None
    """One setting over several values, like num-experts=2,4,6,8,12: each variant that has it is trained with each of
    them, besides; None is no sweep."""
    output_dir: str = "runs/compare"
    """Where the runs lie; the tables, in README.md; all figures, in comparison.json; and the curve of a sweep."""

    def contest(self) -> Contest:
        """All that is to be run; raises for what makes no sense."""
        self._check_own()
        entrants = self._entrants()
        runs = {entrant.label: self._runs(entrant) for entrant in entrants}
        for name in (*OF_EXPERTS, "control_of"):
            given = getattr(self, name)
            if given is not None and all(getattr(first, name) != given for first, *_ in runs.values()):
                raise InputError(f"{flag(name)} is for none of --variants {','.join(self._names())}")
        if self.top_k == "all" and {"sb-moe", "sb-moe-all"} <= set(runs):
            raise InputError("--variants: with --top-k all, sb-moe and sb-moe-all are the same")
        return Contest(runs) if self.sweep is None else self._swept(read_sweep(self.sweep), entrants, runs)

    def _check_own(self) -> None:
        if self.variant != "dense":
            raise InputError(f"--variant is for train: a comparison takes --variants, got {self.variant!r}")
        if self.no_eval:
            raise InputError("--no-eval is for train: a comparison measures")
        if self.resume not in ("auto", "never"):
            raise InputError(f"--resume must be auto or never: there are several runs; got {self.resume!r}")
        if self.seeds < 1:
            raise InputError(f"--seeds must be at least 1, got {self.seeds}")

    def _names(self) -> list[str]:
        known = (*get_args(get_type_hints(TrainConfig)["variant"]), *NAMED)
        names = [name.strip() for name in self.variants.split(",")]
        for name in names:
            if name not in known:
                raise InputError(f"--variants: expected some of {', '.join(known)}, with commas between; got {name!r}")
        if len(set(names)) < len(names):
            raise InputError(f"--variants: each variant once, got {self.variants}")
        return names

    def _entrants(self) -> list[Entrant]:
        """A control is one for each kind of experts; the first one's have the plain folder."""
        names = self._names()
        routed = [NAMED.get(name, {"variant": name})["variant"] for name in names if name not in ("dense", *CONTROLS)]
        families = [self.control_of] if self.control_of else list(dict.fromkeys(routed)) or ["sb-moe"]
        entrants = []
        for name in names:
            for family in families if name in CONTROLS else families[:1]:
                changes = {"control_of": family if name in CONTROLS else None, **NAMED.get(name, {"variant": name})}
                label = f"{name} of {family}" if name in CONTROLS and len(families) > 1 else name
                folder = name if family == families[0] else f"{name}-of-{family}"
                entrants.append(Entrant(label, folder, changes))
        return entrants

    def _swept(self, sweep: Sweep, entrants: list[Entrant], runs: Runs) -> Contest:
        swept: dict[str, dict[Any, list[TrainConfig]]] = {}
        for entrant in entrants:
            alike = runs[entrant.label]
            if not sweep.is_for(entrant.label, alike[0]):
                continue
            for value in sweep.values:
                has_it = effective(alike[0], sweep.setting) == value
                point = alike if has_it else self._runs(_with_value(entrant, sweep.setting, value))
                swept.setdefault(entrant.label, {})[value] = point
        if not swept:
            raise InputError(f"--sweep: {flag(sweep.setting)} is for none of --variants {','.join(self._names())}")
        return Contest(runs, sweep.setting, swept)

    def _runs(self, entrant: Entrant) -> list[TrainConfig]:
        return [self._run(entrant, self.seed + step) for step in range(self.seeds)]

    def _run(self, entrant: Entrant, seed: int) -> TrainConfig:
        given = {field.name: getattr(self, field.name) for field in fields(TrainConfig)}
        folder = Path(self.output_dir) / f"{entrant.folder}-seed{seed}"
        given |= {"seed": seed, "output_dir": str(folder), "no_eval": True, **entrant.changes}
        run = TrainConfig(**given)
        for name in SENSELESS[run.family]:
            setattr(run, name, None)
        run.check()
        top_k, experts = effective(run, "top_k"), effective(run, "num_experts")
        if isinstance(top_k, int) and experts < top_k:
            raise InputError(f"{entrant.label}: --top-k must be at most {experts}, its number of experts; got {top_k}")
        return run


def read_sweep(text: str) -> Sweep:
    """
    >>> read_sweep("num-experts=2,4")
    Sweep(setting='num_experts', values=(2, 4))
    """
    name, equals, listed = text.partition("=")
    setting, texts = name.strip().removeprefix("--").replace("-", "_"), [value.strip() for value in listed.split(",")]
    if not equals or not all(texts):
        raise InputError(f"--sweep takes a setting and its values, like num-experts=2,4,6,8,12; got {text!r}")
    if setting not in {field.name for field in fields(TrainConfig)} - set(NOT_SWEPT):
        raise InputError(f"--sweep: expected a flag of train that runs may differ in, like num-experts; got {name!r}")
    values = tuple(
        getattr(parse(TrainConfig, [f"{flag(setting)}={value}"], "python -m moe_retrieval.compare"), setting)
        for value in texts
    )
    if len(set(values)) < len(values):
        raise InputError(f"--sweep: each value once, got {text!r}")
    return Sweep(setting, values)


def _with_value(entrant: Entrant, setting: str, value: Any) -> Entrant:
    name = flag(setting).removeprefix("--")
    folder = f"{entrant.folder}-{name}-{_in_a_path(str(value))}"
    return Entrant(f"{entrant.label}, {name} {value}", folder, entrant.changes | {setting: value})


def _in_a_path(text: str) -> str:
    """Of two texts that differ, two names, whatever is in them.

    >>> _in_a_path("1e-05"), _in_a_path("query: ")
    ('1e-05', 'query--7c3001ae')
    """
    plain = re.sub(r"[^A-Za-z0-9.+-]+", "-", text)
    return plain if plain == text else f"{plain}-{blake2b(text.encode(), digest_size=4).hexdigest()}"


def compare(config: CompareConfig) -> str:
    """What the command does; -> the first table."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("compare starts processes of its own: call it without torchrun")
    if len(config.datasets()) > 1:
        raise InputError(f"--dataset {config.dataset}: a comparison is on one data set")
    contest, output = config.contest(), Path(config.output_dir)
    import kernels
    from moe_retrieval import data
    from moe_retrieval.training import comparison

    collection = data.load(config.datasets()[0].name, config.data_dir, config.columns)
    if collection.held_out is None:
        raise InputError(f"--dataset {config.dataset} has neither a test split nor a dev split to compare on")
    config = replace(config, precision=comparison.settled_precision(contest))
    contest = config.contest()
    with locked(output):
        comparison.check_begun(contest)
        comparison.check_collection(output, collection, config.resume)
        runs = contest.every()
        for number, run in enumerate(runs, 1):
            print(f"\nrun {number} of {len(runs)}: {Path(run.output_dir).name}", flush=True)
            comparison.train_apart(to_arguments(TrainConfig, asdict(run), "compare"))
        with kernels.use_backend(config.backend):
            return comparison.measure(output, contest, collection, _command(config))


def _command(config: CompareConfig) -> str:
    default = CompareConfig()
    changed = {name: value for name, value in asdict(config).items() if value != getattr(default, name)}
    changed.pop("output_dir", None)
    return shlex.join(["python", "-m", "moe_retrieval.compare", *to_arguments(CompareConfig, changed, "compare")])


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    compare(parse(CompareConfig, arguments, "python -m moe_retrieval.compare", PRESETS))


if __name__ == "__main__":
    run_command(main)
