"""What the log of a run tells of its experts while it was trained: their balance, and where the loss jumped."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from moe_retrieval import config as configs
from moe_retrieval.analysis.load import entropy_of
from moe_retrieval.errors import InputError
from moe_retrieval.training.history import read_events
from moe_retrieval.training.loop import LOOK_EVERY
from moe_retrieval.training.watch import Finding, LossWatch

LOG, FLAGS = "log.jsonl", "config.yaml"

Event = dict[str, Any]


def read_log(folder: Path) -> list[Event]:
    return read_events(folder / LOG)


def describe_balance(events: Sequence[Event]) -> dict[str, Any]:
    """The shares of the slots at each look at the gate, and the router's loss of each step, as far as the log goes."""
    looks = [(event["step"], event["shares"]) for event in events if isinstance(event.get("shares"), dict)]
    shares = [
        {"step": step, "layer": layer, "share": share, "effective_experts": math.exp(entropy_of(share))}
        for step, layers in looks
        for layer, share in layers.items()
        if isinstance(share, list) and _are_numbers(*share)
    ]
    losses = [
        {"step": event["step"], "aux": event["aux"]}
        for event in events
        if _are_numbers(event.get("aux")) and math.isfinite(event["aux"])
    ]
    return {"note": _note(bool(events), bool(shares)), "shares": shares, "router_loss": losses}


def _note(has_log: bool, has_shares: bool) -> str | None:
    if has_shares:
        return None
    if not has_log:
        return f"nothing was kept of the training: there is no {LOG} beside the model"
    return f"{LOG} has losses and no shares: a run of fewer than {LOOK_EVERY} steps, or of an earlier version"


def find_instability(folder: Path, events: Sequence[Event]) -> Iterator[Finding]:
    """What training said of its losses, by the same rules."""
    scales = _precision(folder) == "fp16"  # it lowers its scale until gradients fit: no norm is broken
    watch = LossWatch()
    for event in events:
        if _are_numbers(event.get("loss"), event.get("gradient_norm")):
            try:
                finding = watch.warning(event["step"], event["loss"], 0.0 if scales else event["gradient_norm"])
            except InputError as error:
                yield Finding(("instability", event["step"]), f"instability: {error}")
                return
            if finding is not None:
                yield finding


def _precision(folder: Path) -> Any:
    path = folder / FLAGS
    return configs.read(str(path)).get("precision") if path.is_file() else None


def _are_numbers(*values: object) -> bool:
    """Also NaN: what a loss may be."""
    return all(isinstance(value, int | float) for value in values)
