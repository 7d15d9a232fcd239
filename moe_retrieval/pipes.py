"""Output whose reader goes away: `| head` has what it wanted, and a training goes on."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


def discard(stream: TextIO) -> None:
    """What was written to it and what will be goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def outlasting_readers() -> Iterator[None]:
    """Inside, both outputs may lose their readers."""
    outputs = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Outlasting(stream) for stream in outputs)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = outputs


class _Outlasting:
    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            discard(self.stream)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except BrokenPipeError:
            discard(self.stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
