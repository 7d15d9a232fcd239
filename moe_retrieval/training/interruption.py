"""Ctrl-C in training: the step ends and is saved, and then the run."""

import os
import signal
import threading
import time
from contextlib import suppress
from typing import Any

TOGETHER = 1.0
"""Seconds: what comes again within them is the same Ctrl-C, which the terminal and torchrun both pass on."""


class Interruption:
    """Inside, the first Ctrl-C only makes it `wanted`, for the loop to end between two steps; a second ends at once."""

    def __init__(self) -> None:
        self.wanted = False
        self._first = 0.0
        self._before: Any = None

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # no other may handle signals
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: object) -> None:
        if self.wanted and time.monotonic() - self._first > TOGETHER:
            raise KeyboardInterrupt
        if not self.wanted:
            self.wanted, self._first = True, time.monotonic()
            if os.environ.get("RANK", "0") == "0":  # not print: the signal may have come in the middle of one
                with suppress(OSError):  # its reader may have died of the same Ctrl-C: `2>&1 | tee log`
                    os.write(2, b"\nstopping after this step; Ctrl-C again: at once, without saving\n")
