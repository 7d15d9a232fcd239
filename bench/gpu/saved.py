"""Cases that are saved one by one, as they end: whatever ends the run, what was found before is kept."""

import argparse
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

LASTING = ("CUDA error", "[CUDA]", "illegal memory access")
"""In what an error says that leaves a process no more use of its device."""


class Skipped(Exception):
    """A case cannot run here, and why."""


class Cases:
    """Of the cases that it is given, it runs those of its share, and writes a line of JSON for each."""

    def __init__(self, path: Path, only: str = "", share: str = "0/1"):
        self.path, self.only = path, only
        self.own, self.shares = map(int, share.split("/"))
        self.seen = 0
        self.failed: list[str] = []

    def run(self, name: str, call: Callable[[], dict[str, Any] | None]) -> None:
        if self.only not in name:
            return
        self.seen += 1
        if (self.seen - 1) % self.shares != self.own:
            return
        start, figures, outcome, reason = time.monotonic(), None, "held", ""
        try:
            figures = call()
        except Skipped as skipped:
            outcome, reason = "skipped", str(skipped)
        except Exception as error:
            traceback.print_exc()
            outcome, reason = "failed", f"{type(error).__name__}: {error}".partition("\n")[0]
            self.failed.append(name)
        self.save(name, outcome, reason=reason, seconds=round(time.monotonic() - start, 2), **figures or {})
        if outcome == "failed" and any(word in reason for word in LASTING):
            raise SystemExit(f"{name} left the device in an error that stays: the rest of this share is not run")

    def save(self, name: str, outcome: str, **about: Any) -> None:
        line = json.dumps({"case": name, "outcome": outcome, **about})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def end(self) -> None:
        """Of a command: its exit status."""
        raise SystemExit(1 if self.failed else 0)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def parser(description: str | None) -> argparse.ArgumentParser:
    """Of a part's command."""
    made = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    made.add_argument("output", type=Path, help="a line of JSON for each case is added to it")
    made.add_argument("--only", default="", help="only cases whose name contains this")
    made.add_argument("--share", default="0/1", help="K/N: every N-th case from the K-th on (default: %(default)s)")
    made.add_argument("--small", action="store_true", help="sizes for a rehearsal without a GPU")
    return made


def cases_of(options: argparse.Namespace) -> Cases:
    return Cases(options.output, options.only, options.share)
