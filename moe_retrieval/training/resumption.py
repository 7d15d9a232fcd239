"""Where a run goes on, if an earlier one left checkpoints in its output directory."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from moe_retrieval.config import TrainConfig
from moe_retrieval.errors import InputError, changes
from moe_retrieval.models.precision import PRECISIONS, for_training
from moe_retrieval.training import checkpoint
from moe_retrieval.training.distributed import World, main_first, share_number
from moe_retrieval.training.optimizer import lr_factor

log = logging.getLogger("moe_retrieval")

AROUND = ("output_dir", "data_dir", "resume", "no_eval", "backend")
"""Flags that say where a run is, what computes it and what follows it."""

AHEAD = ("max_steps", "epochs", "eval_every", "save_every", "keep_checkpoints", "patience")
"""Flags that say how far a run goes and how often it looks at itself: the steps that were taken stay what they were.
Every other flag made them, so that with another value they would be those of another run."""

FREE_TO_CHANGE = (*AROUND, *AHEAD)


class RunConfig(Protocol):
    """What a run was told: a dataclass of flags with at least these."""

    @property
    def output_dir(self) -> str: ...
    @property
    def resume(self) -> str: ...
    @property
    def precision(self) -> str: ...

    __dataclass_fields__: ClassVar[dict[str, Any]]


Config = TypeVar("Config", bound=RunConfig)


def checkpoints(config: RunConfig) -> Path:
    return Path(config.output_dir) / "checkpoints"


def settle_precision(config: Config, world: World) -> Config:
    """A run that goes on keeps what "auto" was when it began; else it is what is faster on the machine of rank 0."""
    if config.precision != "auto":
        return config
    precision = for_training(world.device)
    began = next(filter(_is_readable, _candidates(config)), None)
    if began is not None:
        precision = checkpoint.read_state(began)["config"]["precision"]
    names = list(PRECISIONS)
    settled: Any = names[int(share_number(names.index(precision)))]
    return replace(config, precision=settled)


def _candidates(config: RunConfig) -> list[Path]:
    """The checkpoints that a run may go on from, the newest first."""
    if config.resume == "never":
        return []
    return checkpoint.find_all(checkpoints(config))[::-1] if config.resume == "auto" else [Path(config.resume)]


def find_resumption(config: RunConfig, world: World) -> Path | None:
    """The checkpoint to go on from, if any."""
    with main_first(world):
        if config.resume == "never":
            return None
        if config.resume == "auto":
            found = _newest_whole(checkpoints(config))
        else:
            found = Path(config.resume)
            if not checkpoint.NAME.fullmatch(found.name) or not found.is_dir():
                raise InputError(f"--resume {config.resume}: expected auto, never, or a directory like step-00000100")
            checkpoint.check(found)
            for other in filter(_is_readable, checkpoint.find_all(checkpoints(config))):
                check_same_run(config, other)  # those of another run would be lost
        if found is not None:
            check_same_run(config, found)
        return found


def _newest_whole(folder: Path) -> Path | None:
    damaged: list[InputError] = []
    for found in reversed(checkpoint.find_all(folder)):
        try:
            checkpoint.check(found)
        except InputError as error:
            damaged.append(error)
            continue
        for complaint in damaged:
            log.warning("%s; the run goes on from %s", complaint, found)
        return found
    if damaged:
        raise InputError(f"no checkpoint in {folder} is whole: --resume never begins anew; {damaged[0]}")
    return None


def _is_readable(found: Path) -> bool:
    try:
        return bool(checkpoint.read_state(found))
    except InputError:
        return False


def discard_checkpoints(config: RunConfig, world: World) -> None:
    """Those of an earlier run: a later resumption must not take them for this one's."""
    with main_first(world):
        checkpoint.discard_all(checkpoints(config))


def check_same_run(config: RunConfig, found: Path) -> None:
    defaults = {field.name: field.default for field in fields(config)}  # of flags that are newer than the run
    bound = {name: value for name, value in asdict(config).items() if name not in FREE_TO_CHANGE}
    if changed := changes(defaults | checkpoint.read_state(found)["config"], bound):
        raise InputError(
            f"{found} is from a run with {changed}: give the same flags (free to change: {', '.join(AHEAD)}), "
            "--resume never, or another --output-dir"
        )


def check_same_data(found: Path, now: Mapping[str, str]) -> None:
    """What is under a name may have changed: documentation does with what is installed."""
    before = checkpoint.read_state(found).get("data")  # which an older version does not say
    if before is not None and before != now:
        raise InputError(
            f"{found} is from a run on other data, by content hash: {changes(before, now)}; --resume never, or another "
            "--output-dir"
        )


def check_total(total: int, step: int) -> None:
    if total < step:
        raise InputError(
            f"--max-steps, --epochs: the run is at step {step} already; expected that or more, got {total}"
        )


def describe_new_total(config: TrainConfig, before: int, total: int, step: int) -> str:
    """What becomes of the learning rate of a run that had `before` steps to go and now has `total`."""
    share = lr_factor(min(step, total - 1), total, round(config.warmup * total), config.schedule)
    return (
        f"{total} steps instead of {before}: from step {step} on the learning rate is that of a run of {total} steps, "
        f"now {share:.0%} of its peak; the steps so far had that of {before}"
    )
