"""python -m moe_retrieval.compare: variants trained alike, measured beside each other."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

import tyro

from moe_retrieval import presets
from moe_retrieval.bounds import flag
from moe_retrieval.cli import parse, run_command, to_arguments
from moe_retrieval.config import CONTROLS, OF_EXPERTS, SENSELESS, TrainConfig
from moe_retrieval.errors import InputError
from moe_retrieval.locks import locked

PRESETS = {name: preset.flags_of_comparison for name, preset in presets.PRESETS.items()}


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
        for name in SENSELESS[run.family]:
            setattr(run, name, None)
        run.check()
        return run


def compare(config: CompareConfig) -> str:
    """What the command does; -> the table."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("compare starts processes of its own: call it without torchrun")
    if len(config.datasets()) > 1:
        raise InputError(f"--dataset {config.dataset}: a comparison is on one data set")
    runs, output = config.runs(), Path(config.output_dir)
    import kernels
    from moe_retrieval import data
    from moe_retrieval.training import comparison

    collection = data.load(config.datasets()[0].name, config.data_dir, config.columns)
    if collection.held_out is None:
        raise InputError(f"--dataset {config.dataset} has neither a test split nor a dev split to compare on")
    config = replace(config, precision=comparison.settled_precision(runs))
    runs = config.runs()
    with locked(output):
        comparison.check_begun(runs)
        comparison.check_collection(output, collection, config.resume)
        for run in comparison.every(runs):
            comparison.train_apart(to_arguments(TrainConfig, asdict(run), "compare"))
        with kernels.use_backend(config.backend):
            return comparison.measure(output, runs, collection, _command(config))


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
