"""Where a run goes on, if an earlier one left checkpoints in its output directory."""

import logging
from dataclasses import asdict
from pathlib import Path

from moe_retrieval.config import TrainConfig
from moe_retrieval.errors import InputError
from moe_retrieval.training import checkpoint
from moe_retrieval.training.distributed import World, main_first

log = logging.getLogger("moe_retrieval")

FREE_TO_CHANGE = ("output_dir", "data_dir", "resume", "save_every", "no_eval", "backend")
"""Flags that a resumed run may give otherwise."""


def checkpoints(config: TrainConfig) -> Path:
    return Path(config.output_dir) / "checkpoints"


def find_resumption(config: TrainConfig, world: World) -> Path | None:
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


def discard_checkpoints(config: TrainConfig, world: World) -> None:
    """Those of an earlier run: a later resumption must not take them for this one's."""
    with main_first(world):
        checkpoint.discard_all(checkpoints(config))


def check_same_run(config: TrainConfig, found: Path) -> None:
    before, now = checkpoint.read_state(found)["config"], asdict(config)
    changed = [name for name in now if name not in FREE_TO_CHANGE and before.get(name) != now[name]]
    if changed:
        said = ", ".join(f"{name} {before.get(name)} (now {now[name]})" for name in changed)
        raise InputError(
            f"{found} is from a run with {said}: give the same flags, --resume never, or another --output-dir"
        )
