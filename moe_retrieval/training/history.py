"""What a run says while it goes: log.jsonl, how far it is, the terminal, TensorBoard. Of rank 0 alone."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from moe_retrieval import files
from moe_retrieval.progress import Meter
from moe_retrieval.training.board import Board
from moe_retrieval.training.distributed import World
from moe_retrieval.training.watch import Finding

MOST_SHOWN = 12
"""Experts whose shares have room on a line"""


class History:
    def __init__(self, path: Path, step: int, world: World):
        """`step` is where the run begins: lines of later steps, which it will write again, are dropped."""
        self.main = world.is_main
        self.warned: set[tuple[str, str | int]] = set()
        self.meter: Meter | None = None
        self.experts: dict[str, str] = {}
        if self.main:
            before = path.read_bytes().splitlines() if path.is_file() and step else []
            files.write(path, b"".join(line + b"\n" for line in before if 0 <= _step(line) <= step))
            self.file = path.open("a", encoding="utf-8")
            self.board = Board(path.parent / "tensorboard", step)

    def start_meter(self, total: int, step: int) -> None:
        if self.main:
            self.meter = Meter("training", total, "steps", step).start()

    def advance(self, step: int, loss: float, lr: float, pace: float | None = None) -> None:
        """`pace` is in tokens a second, if it is known."""
        if self.meter is not None:
            facts = {"loss": f"{loss:.4f}", "lr": f"{lr:.1e}"}
            drawn = {"lr": lr}
            if pace is not None:
                facts["tokens/s"] = f"{pace:,.0f}"
                drawn["tokens_a_second"] = pace
            self.board.draw(step, drawn)
            self.meter.advance(1, **facts, **self.experts)

    def note_experts(self, step: int, shares: Mapping[str, Sequence[float]]) -> None:
        """Layer -> the share of the recent tokens that each expert had."""
        if self.main and shares:
            drawn = {f"{name}/{expert}": share for name, each in shares.items() for expert, share in enumerate(each)}
            self.board.draw(step, drawn)
            self.experts = {"experts": shown_shares(shares)}

    def write(self, **event: Any) -> None:
        if self.main:
            self.file.write(json.dumps({**event, "time": round(time.time(), 1)}) + "\n")
            self.file.flush()
            self.board.draw(event["step"], curves(event))

    def say(self, text: str) -> None:
        if self.main:
            tqdm.write(text)

    def warn(self, finding: Finding) -> None:
        """Says it, unless it was said before."""
        if finding.key not in self.warned:
            self.warned.add(finding.key)
            self.say(f"warning: {finding.text}")

    def __enter__(self) -> "History":
        return self

    def __exit__(self, *error: object) -> None:
        self.close(finished=error[0] is None)

    def close(self, finished: bool = True) -> None:
        if self.meter is not None:
            self.meter.stop(finished)
        if self.main:
            self.file.close()
            self.board.close()


def curves(event: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an event, and those behind its names; shares of experts have curves of their own.

    >>> curves({"step": 4, "ndcg_at_10": 0.5, "by_dataset": {"docs": 0.5}, "shares": {"block": [0.5, 0.5]}})
    {'ndcg_at_10': 0.5, 'by_dataset/docs': 0.5}
    """
    drawn: dict[str, float] = {}
    for name, value in event.items():
        of_name = (
            {f"{name}/{key}": each for key, each in value.items()} if isinstance(value, Mapping) else {name: value}
        )
        drawn |= {key: each for key, each in of_name.items() if isinstance(each, int | float) and key != "step"}
    return drawn


def shown_shares(shares: Mapping[str, Sequence[float]]) -> str:
    """
    >>> shown_shares({"block": [0.5, 0.3, 0.2]})
    '50/30/20%'
    >>> shown_shares({"encoder.blocks.1.ffn": [0.5, 0.5], "encoder.blocks.3.ffn": [0.9, 0.1]})
    '10% to 90%'
    """
    every = [share for each in shares.values() for share in each]
    if len(shares) == 1 and len(every) <= MOST_SHOWN:
        return "/".join(f"{100 * share:.0f}" for share in every) + "%"
    return f"{min(every):.0%} to {max(every):.0%}"


def read_events(path: Path) -> list[dict[str, Any]]:
    """What a run wrote, but for what a kill or a disk left of a line; nothing where there is no such file."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if _step(line) >= 0]


def _step(line: bytes) -> int:
    """-1 for what a kill or a disk left of a line."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return -1
    return step if isinstance(step, int) else -1
