"""Streams without another end: `| head` has what it wanted, and a training goes on; `>&-` is like `> /dev/null`."""

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


def open_closed() -> None:
    """A standard stream that was closed before we began goes nowhere, and no file gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # each takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


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
