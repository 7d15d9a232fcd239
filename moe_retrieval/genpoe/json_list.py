"""Objects of a JSON file that is one long list, read one by one: DPR's training data of NQ is 7 GB of it.

The same from JSON lines, where the name ends in .jsonl. Either may be compressed and end in .gz.
"""

import json
import os
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO, cast

from moe_retrieval.data.plain import opened
from moe_retrieval.data.records import check_unicode, read_objects
from moe_retrieval.errors import InputError

CHUNK = 1 << 20
"""Characters: more than most objects have"""

CUT = 16
"""Characters before the end of what was read in which an error may only mean that there is more: a word like `false`,
or an escape, was cut in two"""

SPACE = " \t\r\n"


def read_list(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    """-> ("path:entry 1", object) of every object."""
    if Path(path).name.removesuffix(".gz").endswith(".jsonl"):
        yield from read_objects(path)
        return
    try:
        with opened(path) as file, TextIOWrapper(cast(Any, file), encoding="utf-8-sig") as text:
            yield from _Reader(text, os.fspath(path)).entries()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte 0x{error.object[error.start]:02x})") from None


class _Reader:
    """`waiting` is what was read of the file and not yet used, from `place` on."""

    def __init__(self, file: TextIO, path: str):
        self.file, self.path = file, path
        self.waiting, self.place = "", 0
        self.decoder = json.JSONDecoder()

    def entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        first = self.next_sign()
        if first != "[":
            raise InputError(f"{self.path}: expected a list [...] of objects, got {first or 'nothing'!r}")
        self.place += 1
        number, sign = 0, self.next_sign()
        while sign != "]":
            number += 1
            where = f"{self.path}:entry {number}"
            if sign != "{":
                raise InputError(f"{where}: expected an object {{...}}, got {self.excerpt()}")
            yield where, self.read_object(where)
            sign = self.next_sign()
            if sign == ",":
                self.place += 1
                sign = self.next_sign()
                if sign == "]":
                    raise InputError(f"{where}: a comma after the last object")
            elif sign != "]":
                raise InputError(f"{where}: expected a comma or the end of the list behind it, got {self.excerpt()}")
        self.place += 1
        if self.next_sign():
            raise InputError(f"{self.path}: expected nothing behind the list, got {self.excerpt()}")

    def next_sign(self) -> str:
        """The next character that is no space, or "" at the end; it stays where it is."""
        while True:
            while self.place < len(self.waiting):
                if self.waiting[self.place] not in SPACE:
                    return self.waiting[self.place]
                self.place += 1
            if not self.read_more():
                return ""

    def read_object(self, where: str) -> dict[str, Any]:
        while True:
            try:
                value, end = self.decoder.raw_decode(self.waiting, self.place)
                break
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos >= len(self.waiting) - CUT
                if not (is_cut and self.read_more()):
                    raise InputError(f"{where}: not JSON ({error.msg})") from None
            except RecursionError:
                raise InputError(f"{where}: not JSON (nested too deeply)") from None
            except ValueError as error:  # an integer of thousands of digits
                raise InputError(f"{where}: not JSON ({error})") from None
        if "\\ud" in self.waiting[self.place : end].lower():
            check_unicode(value, where)
        self.place = end
        return value

    def read_more(self) -> bool:
        """As much again as is waiting, so that an object of any length is parsed a few times only."""
        rest = self.waiting[self.place :]
        more = self.file.read(max(CHUNK, len(rest)))
        self.waiting, self.place = rest + more, 0
        return bool(more)

    def excerpt(self) -> str:
        return repr(self.waiting[self.place : self.place + 40]) if self.next_sign() else "the end of the file"
