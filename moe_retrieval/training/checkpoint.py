"""Everything that a run needs to go on as if it had never stopped, in safetensors and JSON.

A checkpoint is a directory `step-00000120`: model, optimizer, the random state of each rank, and `state.json` with the
rest, also the checksum of each file. It is written under another name, flushed to the disk and renamed: whatever has
the right name was whole then.
"""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from moe_retrieval import checksums
from moe_retrieval.checksums import read_sealed, write_sealed
from moe_retrieval.errors import InputError
from moe_retrieval.files import write
from moe_retrieval.training import rng
from moe_retrieval.training.distributed import World, barrier

KEPT = 2
"""Checkpoints of a run, where nothing else is said: the one before stays until the next but one is whole."""

NAME = re.compile(r"step-\d{8}")


@dataclass
class Progress:
    """How far a run is. The data's order is a function of the seed, so the step says where in the data it is."""

    step: int = 0
    best_score: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0
    stopped_early: bool = False
    broken: int = 0
    """The newest steps that had no finite loss or gradient."""
    seconds: float = 0.0
    """That the steps took, with their validations."""
    peak_memory: int = 0
    """Bytes"""


@dataclass
class Trained:
    """What changes during training."""

    retriever: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


def save(
    folder: Path, world: World, trained: Trained, progress: Progress, config: dict[str, Any], kept: int = KEPT,
    data: Mapping[str, str] | None = None,
) -> Path:  # fmt: skip
    """Writes the checkpoint of this step into `folder`, where the newest `kept` stay; every rank calls it.

    `data` are the data sets that the steps were taken on, by name, with their content hash.
    """
    final = folder / f"step-{progress.step:08d}"
    draft = folder / f".{final.name}.draft"
    if world.is_main:
        for leftover in (*folder.glob(".*.draft"), *folder.glob(".*.old")):
            shutil.rmtree(leftover)
        draft.mkdir(parents=True)
    barrier()
    write(draft / f"rng-{world.rank}.safetensors", to_safetensors(rng.capture(world.device)))
    barrier()
    if world.is_main:
        sums = {path.name: checksums.of_file(path) for path in draft.iterdir()}  # the random states
        tensors = {"model": _contiguous(trained.retriever.state_dict()), "optimizer": _optimizer_tensors(trained)}
        for name, part in tensors.items():
            content = to_safetensors(part)
            write(draft / f"{name}.safetensors", content)
            sums[f"{name}.safetensors"] = checksums.of_bytes(content)
        state = {
            "progress": asdict(progress),
            "world_size": world.size,
            "scaler": trained.scaler.state_dict(),
            "config": config,
            "data": data,
            "files": sums,
        }
        write_sealed(draft / "state.json", state)
        _flush(draft)
        if final.exists():  # this step, from before a resumption
            doomed = _set_aside(final)
            draft.rename(final)
            shutil.rmtree(doomed)
        else:
            draft.rename(final)
        _flush(folder)
        found = find_all(folder)
        place = found.index(final)
        for other in (*found[: max(0, place + 1 - kept)], *found[place + 1 :]):
            _remove(other)  # also those ahead, which a run that went back has left
    barrier()
    return final


def room(retriever: nn.Module, folder: Path, kept: int = KEPT) -> int:
    """Bytes that a run still needs: for the `kept` checkpoints in `folder` and the one that is written meanwhile, with
    two more numbers for each weight that learns (AdamW's), and for the best model."""
    weights = sum(4 * parameter.numel() for parameter in retriever.parameters())
    moments = sum(8 * parameter.numel() for parameter in retriever.parameters() if parameter.requires_grad)
    taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return (weights + moments) * (kept + 1) + weights - taken


def _remove(checkpoint: Path) -> None:
    shutil.rmtree(_set_aside(checkpoint))


def _set_aside(checkpoint: Path) -> Path:
    """Under another name: a kill in the middle of its removal must leave nothing that looks whole."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    return checkpoint.rename(doomed)


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _optimizer_tensors(trained: Trained) -> dict[str, Tensor]:
    names = {id(parameter): name for name, parameter in trained.retriever.named_parameters()}
    state = trained.optimizer.state
    return _contiguous({f"{key}/{names[id(p)]}": tensor for p in state for key, tensor in state[p].items()})


def find_all(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, the oldest first."""
    found = folder.iterdir() if folder.is_dir() else []
    return sorted(path for path in found if NAME.fullmatch(path.name))


def discard_all(folder: Path) -> None:
    """A run that starts anew leaves nothing that a later one could take for its own."""
    for checkpoint in find_all(folder):
        _remove(checkpoint)


def read_state(checkpoint: Path) -> dict[str, Any]:
    try:
        return read_sealed(checkpoint / "state.json")
    except InputError as error:
        raise InputError(f"resume: {checkpoint} is no checkpoint: {error}") from None


def check(checkpoint: Path) -> None:
    """Raises where a file is missing, or is not what was written."""
    checksums.check_files(checkpoint, read_state(checkpoint)["files"])


def restore(checkpoint: Path, world: World, trained: Trained) -> tuple[Progress, bool]:
    """Puts a run where the checkpoint left it; -> its progress, and whether random states came with it.

    They do unless the number of processes is another one.
    """
    state = read_state(checkpoint)
    retriever, optimizer = trained.retriever, trained.optimizer
    try:
        retriever.load_state_dict(load_file(checkpoint / "model.safetensors"))
        tensors = load_file(checkpoint / "optimizer.safetensors")
    except (OSError, RuntimeError) as error:
        raise InputError(f"resume: {checkpoint} does not fit this run: {' '.join(str(error).split())}") from None
    by_name = dict(retriever.named_parameters())
    optimizer.state.clear()
    for path, tensor in tensors.items():
        key, name = path.split("/", 1)
        optimizer.state[by_name[name]][key] = tensor.to(by_name[name].device, copy=True)
    trained.scaler.load_state_dict(state["scaler"])
    same_world = state["world_size"] == world.size
    if same_world:
        rng.restore(load_file(checkpoint / f"rng-{world.rank}.safetensors"), world.device)
    return Progress(**state["progress"]), same_world
