"""The passages that are searched: DPR's Wikipedia (id, text and title between tabs; 21 million), or JSON lines.

Read in place, as documents are: 12 bytes a passage are kept, and its text is parsed when it is asked for.
"""

import logging
import os
import zlib
from array import array
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from moe_retrieval.data.plain import plain_file
from moe_retrieval.data.records import StoredDocuments, decode, parse_object, read_lines, string_field
from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.examples import ID_NAMES, Passage, split_columns
from moe_retrieval.progress import Meter

log = logging.getLogger("moe_retrieval")

COLUMNS = ("id", "text", "title")
"""Of DPR's file; another order where the first line names it."""


class Passages(StoredDocuments):
    """The passages of a .tsv, or of a .jsonl with id (or _id), text and perhaps title; each also with .gz.

    Every line is checked once, at the start.
    """

    def __init__(self, path: str | os.PathLike, joint: str = " "):
        """`joint` stands between title and text where the two are one text."""
        self.joint = joint
        self.name = os.fspath(path)
        kind = Path(path).name.removesuffix(".gz")
        if not kind.endswith((".tsv", ".jsonl")):
            raise InputError(f"{path}: expected passages in a .tsv or .jsonl, also with .gz")
        self.columns: tuple[str, ...] | None = COLUMNS if kind.endswith(".tsv") else None
        try:
            plain = plain_file(path)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
        starts, sums = self._check_lines(plain)
        super().__init__(plain, np.frombuffer(starts, dtype=np.int64), np.frombuffer(sums, dtype=np.uint32))

    def _check_lines(self, path: Path) -> tuple[array, array]:
        starts, sums, empty = array("q"), array("I"), 0
        with Meter(f"reading {self.name}"):
            for number, start, line in read_lines(path):
                if number == 1 and self._is_header(line):
                    continue
                record = self._parse(line, f"{self.name}:{number}")
                empty += not record["text"].strip()
                starts.append(start)
                sums.append(zlib.crc32(line.removesuffix(b"\n")))
        if not starts:
            raise InputError(f"{self.name}: holds no passage")
        if empty:
            log.warning("%s: %d passages are empty", self.name, empty)
        return starts, sums

    def _is_header(self, line: bytes) -> bool:
        if self.columns is None:
            return False
        names = tuple(line.decode(errors="replace").strip().split("\t"))
        if sorted(names) != sorted(COLUMNS):
            return False
        self.columns = names
        return True

    def parse(self, line: bytes) -> dict[str, Any]:
        return self._parse(line, self.name)

    def _parse(self, line: bytes, where: str) -> dict[str, Any]:
        if self.columns is not None:
            values = split_columns(decode(line, where), where)
            if len(values) != len(self.columns):
                expected = ", ".join(self.columns)
                raise InputError(f"{where}: expected {expected} between tabs, got {len(values)} columns")
            record: dict[str, Any] = dict(zip(self.columns, values))
        else:
            record = parse_object(line, where)
        name = next((record[field] for field in ("_id", *ID_NAMES) if record.get(field) not in (None, "")), None)
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise InputError(f'{where}: expected an "id" that is a text, got {name!r:.40}')
        title = string_field(record, "title", where) if record.get("title") is not None else ""
        return {"_id": str(name), "title": title, "text": string_field(record, "text", where)}

    def passage(self, row: int) -> Passage:
        record = self.record(row)
        return Passage(record["_id"], record["title"], record["text"])

    def text(self, row: int) -> str:
        """What a retriever reads of it."""
        passage = self.passage(row)
        return self.joint.join(filter(None, (passage.title.strip(), passage.text.strip())))

    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        return self.id(row), self.text(row)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any passage."""
        return self.fingerprint_of(range(len(self)))

    def fingerprint_of(self, rows: range) -> str:
        """Of these alone: consecutive ones, whose checksums stand for them."""
        return blake2b(self.sums[rows.start : rows.stop].tobytes(), digest_size=8).hexdigest()
