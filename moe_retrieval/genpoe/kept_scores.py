"""Scores that are kept as they come, beside the file that is made of them: a run that was stopped goes on with them.

The first line says in JSON what they are of. Then each question has a line: the checksum of what was scored, and the
scores. Where a line is not of what is asked now, all is scored anew from there on.
"""

import json
import logging
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from moe_retrieval.errors import InputError

log = logging.getLogger("moe_retrieval")


class KeptScores:
    """`with KeptScores(...)` removes the file where all went well."""

    def __init__(self, path: Path, of: dict[str, Any]):
        """Raises for a file of other scores, which would be lost."""
        self.path = path
        self.file = path.open("r+b" if path.exists() else "w+b")
        try:
            self.has_more = self._begin(of)
        except BaseException:
            self.file.close()
            raise

    def _begin(self, of: dict[str, Any]) -> bool:
        """Whether there is something to read."""
        head = self.file.readline()
        if not self.file.readline():  # it is new, or nothing was scored
            self.file.seek(0)
            self.file.truncate()
            self.file.write(json.dumps(of).encode() + b"\n")
            self.file.flush()
            return False
        before, now = _parsed(head), json.loads(json.dumps(of))
        if not isinstance(before, dict) or before.keys() != now.keys():
            raise InputError(f"{self.path} is no file of scores: remove it, or give another --output")
        changed = [name for name in now if before[name] != now[name]]
        if changed:
            raise InputError(
                f"{self.path} has what a run with another {', '.join(changed)} scored: the flags of that run go on "
                "with it; without it, or with another --output, all is scored anew"
            )
        self.file.seek(len(head))
        return True

    def __enter__(self) -> "KeptScores":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        if kind is None:
            self.path.unlink()

    def of(self, question: str, texts: Sequence[str], score: Callable[[], list[float]]) -> list[float]:
        """The scores of these texts, which are asked for in the same order by every run."""
        asked = zlib.crc32(json.dumps([question, *texts]).encode())
        if self.has_more:
            place, line = self.file.tell(), self.file.readline()
            found = _parsed(line) if line.endswith(b"\n") else None
            if isinstance(found, list) and len(found) == len(texts) + 1 and found[0] == asked:
                return found[1:]
            if found is not None:
                log.warning("%s: has scores of other questions or passages, which are scored anew", self.path)
            self.file.seek(place)
            self.file.truncate()
            self.has_more = False
        scores = score()
        self.file.write(json.dumps([asked, *scores]).encode() + b"\n")
        self.file.flush()
        return scores


def _parsed(line: bytes) -> Any:
    """None for what a kill or a disk left of a line."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
