"""How long each system took to rank, and how many texts a second that is."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    def __init__(self, texts: int):
        """`texts`: the queries and documents that each system works through."""
        self.texts = texts
        self.seconds: dict[str, float] = {}
        self.resumed: set[str] = set()

    @contextmanager
    def timing(self, system: str, resumed: bool = False) -> Iterator[None]:
        """`resumed`: an earlier run did a part of the work, so that its speed is not that of this time."""
        began = time.perf_counter()
        yield
        self.seconds[system] = time.perf_counter() - began
        if resumed:
            self.resumed.add(system)

    def shown(self, system: str) -> str:
        """Nothing for a system that was not timed.

        >>> watch = Stopwatch(600)
        >>> watch.seconds["ours"] = 2.0
        >>> watch.shown("ours"), watch.shown("theirs")
        ('2.0 s (300 texts/s)', '')
        """
        if system not in self.seconds:
            return ""
        seconds = self.seconds[system]
        if system in self.resumed:
            return f"{seconds:.1f} s (with embeddings from before)"
        return f"{seconds:.1f} s ({self.texts / seconds:,.0f} texts/s)"
