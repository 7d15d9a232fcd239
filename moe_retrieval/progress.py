"""How far long work is: a bar on a terminal; elsewhere a line every 30 seconds, so that no log is silent for long."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from threading import Event, Thread
from typing import Any, TypeVar

Item = TypeVar("Item")

EVERY = 30.0
"""Seconds between two lines"""


class Meter:
    """Of `total` parts, or of work without parts that could be counted: `with Meter(...)`, and `advance` after each.

    Lines come from a thread: also while one part takes minutes inside of another library. Without a label, without a
    standard error, and on all ranks but the first, it is silent.
    """

    def __init__(self, label: str | None, total: int | None = None, unit: str = "", done: int = 0):
        """`done` were done by an earlier run: they count, but not in the rate."""
        self.label = label if os.environ.get("RANK", "0") == "0" and sys.stderr is not None else None
        self.total, self.unit = total, unit
        self.done = self.first = done
        self.facts: dict[str, str] = {}
        self.bar: Any = None
        self.thread: Thread | None = None
        self.closing = Event()
        self.has_spoken = False

    def __enter__(self) -> "Meter":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop(finished=error[0] is None)

    def start(self) -> "Meter":
        self.began = time.monotonic()
        if self.label is not None and self.total is not None and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=self.total, initial=self.done, desc=self.label, unit=self.unit, miniters=1)
        elif self.label is not None:
            self.thread = Thread(target=self._speak, daemon=True)
            self.thread.start()
        return self

    def advance(self, count: int = 1, **facts: str) -> None:
        """`facts` are shown beside, like loss="0.512"."""
        self.done += count
        self.facts = facts
        if self.bar is not None:
            self.bar.set_postfix(facts, refresh=False)
            self.bar.update(count)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; each counts when the next is asked for."""
        for item in items:
            yield item
            self.advance()

    def stop(self, finished: bool = True) -> None:
        self.closing.set()
        if self.bar is not None:
            self.bar.close()
        if self.thread is not None:
            self.thread.join()
            if self.has_spoken and finished:
                self._print(f"{self._count()}, in {clock(time.monotonic() - self.began)}")

    def _speak(self) -> None:
        while not self.closing.wait(EVERY):
            self.has_spoken = True
            self._print(self.line(time.monotonic() - self.began))

    def _print(self, text: str) -> None:
        print(f"{self.label}: {text}", file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """What is said after so many seconds."""
        parts = [self._count()] if self.total is not None else []
        parts += [f"{name} {value}" for name, value in self.facts.items()]
        made = self.done - self.first
        if self.total is None or not made:
            return ", ".join([*parts, f"{clock(seconds)} so far"])
        rate = made / seconds
        parts.append(f"{rate:,.1f} a second" if rate >= 1 else f"{1 / rate:.1f} s each")
        return ", ".join([*parts, f"{clock((self.total - self.done) / rate)} left"])

    def _count(self) -> str:
        return f"{self.done:,} of {self.total:,} {self.unit}" if self.total is not None else "done"


def clock(seconds: float) -> str:
    """
    >>> clock(95), clock(7322)
    ('1:35', '2:02:02')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
