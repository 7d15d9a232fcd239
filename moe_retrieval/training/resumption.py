"""Where a run goes on, if an earlier one left checkpoints in its output directory."""

from dataclasses import asdict
from pathlib import Path

from moe_retrieval.config import TrainConfig
from moe_retrieval.errors import InputError
from moe_retrieval.training import checkpoint
from moe_retrieval.training.distributed import World, main_first

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
            found = checkpoint.find_newest(checkpoints(config))
        else:
            found = Path(config.resume)
            if not checkpoint.NAME.fullmatch(found.name) or not found.is_dir():
                raise InputError(f"--resume {config.resume}: expected auto, never, or a directory like step-00000100")
            for other in checkpoint.find_all(checkpoints(config)):  # of another run, they would be lost
                check_same_run(config, other)
        if found is not None:
            check_same_run(config, found)
        return found


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
