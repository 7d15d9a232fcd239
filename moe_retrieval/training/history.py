"""What a run says while it goes: log.jsonl, how far it is, the terminal. Of rank 0 alone."""

import json
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from moe_retrieval import files
from moe_retrieval.progress import Meter
from moe_retrieval.training.distributed import World
from moe_retrieval.training.watch import Finding


class History:
    def __init__(self, path: Path, step: int, world: World):
        """`step` is where the run begins: lines of later steps, which it will write again, are dropped."""
        self.main = world.is_main
        self.warned: set[tuple[str, str | int]] = set()
        self.meter: Meter | None = None
        if self.main:
            before = path.read_bytes().splitlines() if path.is_file() and step else []
            files.write(path, b"".join(line + b"\n" for line in before if 0 <= _step(line) <= step))
            self.file = path.open("a", encoding="utf-8")

    def start_meter(self, total: int, step: int) -> None:
        if self.main:
            self.meter = Meter("training", total, "steps", step).start()

    def advance(self, loss: float) -> None:
        if self.meter is not None:
            self.meter.advance(loss=f"{loss:.4f}")

    def write(self, **event: Any) -> None:
        if self.main:
            self.file.write(json.dumps({**event, "time": round(time.time(), 1)}) + "\n")
            self.file.flush()

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
