"""JSON-lines files of records with ids, read in place: a corpus larger than memory is fine.

Of each document only its place in the file, its checksum and a hash of its id are kept (20 bytes); its text is parsed
when it is asked for, from a memory map.
"""

import json
import logging
import mmap
import os
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from moe_retrieval.data.plain import STANDARD_INPUT, opened, plain_file
from moe_retrieval.errors import InputError
from moe_retrieval.progress import Meter

log = logging.getLogger("moe_retrieval")


SPACE = "\u2420"
"""What stands for a space of an id where spaces part columns: in TREC's run files. It looks like SP."""


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, int, bytes]]:
    """-> (line number from 1, offset in the unpacked file, line) of every line that is not blank."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(opened(path))
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
        offset = 0
        for number, line in enumerate(file, 1):
            start, offset = offset, offset + len(line)
            if number == 1 and line.startswith(b"\xef\xbb\xbf"):
                start, line = 3, line[3:]
            if not line.isspace() and line:
                yield number, start, line


def decode(line: bytes, where: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 (byte 0x{line[error.start]:02x} in column {error.start + 1})") from None


def parse_object(line: bytes, where: str) -> dict[str, Any]:
    """One line of a JSON-lines file; `where` is its path:number."""
    value = parse_value(line, where)
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object {{...}}, got {decode(line, where).strip()[:40]!r}")
    return value


def parse_value(line: bytes, where: str) -> Any:
    text = decode(line, where)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg} in column {error.colno})") from None
    except RecursionError:
        raise InputError(f"{where}: not JSON (nested too deeply)") from None
    except ValueError as error:  # an integer of thousands of digits
        raise InputError(f"{where}: not JSON ({error})") from None
    if b"\\ud" in line or b"\\uD" in line:
        check_unicode(value, where)
    return value


def check_unicode(value: Any, where: str) -> None:
    """Half of a surrogate pair is legal JSON, but no text that a file or a tokenizer could hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise InputError(f"{where}: not JSON (nested too deeply)") from None
    except UnicodeEncodeError:
        raise InputError(f"{where}: half of a surrogate pair (\\ud...) is not text") from None


def read_values(path: str | os.PathLike) -> Iterator[tuple[str, Any]]:
    """-> ("path:number", what the JSON says) of every line."""
    for number, _, line in read_lines(path):
        where = f"{path}:{number}"
        yield where, parse_value(line, where)


def read_objects(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    """-> ("path:number", object) of every line."""
    for number, _, line in read_lines(path):
        where = f"{path}:{number}"
        yield where, parse_object(line, where)


def record_id(record: dict[str, Any], where: str) -> str:
    value = record.get("_id")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise InputError(f'{where}: expected an "_id" that is a string, got {value!r}')
    words = value.split()
    if words != [value] and " ".join(words) != value:
        raise InputError(f'{where}: the "_id" {value!r} has white space in it that is no single space between words')
    if SPACE in value:
        raise InputError(f'{where}: the "_id" {value!r} has {SPACE} in it, which stands for a space in run files')
    return value


def string_field(record: dict[str, Any], field: str, where: str, default: str | None = None) -> str:
    value = record.get(field, default)
    if not isinstance(value, str):
        came = repr(value)[:40] if field in record else f"only {', '.join(sorted(record)) or 'nothing'}"
        raise InputError(f'{where}: expected a "{field}" that is a string, got {came}')
    return value


def document_text(record: dict[str, Any], where: str) -> str:
    """Title and text, as BEIR joins them."""
    title = string_field(record, "title", where, "") if record.get("title") is not None else ""
    return f"{title} {string_field(record, 'text', where)}".strip()


class StoredDocuments(Sequence):
    """Lines {"_id": ..., "title": ..., "text": ...} of a file, at known places; title may be missing.

    documents[i] is (id, text), text being title and text as one; `record(i)` is the whole object.
    """

    def __init__(self, path: str | os.PathLike, starts: np.ndarray, sums: np.ndarray):
        """Of each line, its offset in the file and its CRC-32: one that was changed meanwhile is refused."""
        self.path, self.starts, self.sums = Path(path), starts, sums
        self._open()

    def _open(self) -> None:
        try:
            with open(self.path, "rb") as file:
                self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}") from None
        except ValueError:  # nothing can be mapped
            raise InputError(f"{self.path}: is damaged, or another's: it is empty") from None

    def __len__(self) -> int:
        return len(self.starts)

    def record(self, row: int) -> dict[str, Any]:
        start = int(self.starts[row])
        stop = self._memory.find(b"\n", start)
        line = self._memory[start : stop if stop >= 0 else len(self._memory)]
        if zlib.crc32(line) != self.sums[row]:
            raise InputError(f"{self.path}: is damaged, or another's: document {row + 1} is not what it was")
        return self.parse(line)

    def parse(self, line: bytes) -> dict[str, Any]:
        """Of a line that was checked before."""
        return json.loads(line)

    def id(self, row: int) -> str:
        return str(self.record(row)["_id"])

    def text(self, row: int) -> str:
        return document_text(self.record(row), str(self.path))

    def domain(self, row: int) -> str | None:
        """What a document belongs to by its own "metadata": {"domain": ...}, if it says so: it need not be a name."""
        metadata = self.record(row).get("metadata")
        name = metadata.get("domain") if isinstance(metadata, dict) else None
        return name if isinstance(name, str) and name.strip() else None

    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        record = self.record(row)
        return str(record["_id"]), document_text(record, str(self.path))

    @property
    def texts(self) -> "Texts":
        """The texts alone, each read when it is asked for."""
        return Texts(self, range(len(self)))

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_memory"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._open()


class Documents(StoredDocuments):
    """The documents of a corpus.jsonl, every line of which is checked once, at the start.

    A file, also .gz, or - for standard input; `name` is what messages call it.
    """

    def __init__(self, path: str | os.PathLike):
        self.name = "standard input" if path == STANDARD_INPUT else os.fspath(path)
        path = plain_file(path)
        starts, hashes, sums = array("q"), array("Q"), array("I")
        empty: list[int] = []
        digest = blake2b(digest_size=8)
        with Meter(f"reading {self.name}"):
            for number, start, line in read_lines(path):
                where = f"{self.name}:{number}"
                record = parse_object(line, where)
                hashes.append(_hash(record_id(record, where)))
                if not document_text(record, where):
                    empty.append(number)
                starts.append(start)
                sums.append(zlib.crc32(line.removesuffix(b"\n")))
                digest.update(line)
        if not starts:
            raise InputError(f"{self.name}: holds no document")
        super().__init__(path, np.frombuffer(starts, dtype=np.int64), np.frombuffer(sums, dtype=np.uint32))
        hashes_of_rows = np.frombuffer(hashes, dtype=np.uint64)
        self._order = np.argsort(hashes_of_rows, kind="stable")
        self._hashes = hashes_of_rows[self._order]
        self._asked: dict[str, int | None] = {}  # those of the judgements, which are in memory anyway
        self.fingerprint = digest.hexdigest()
        self._check_distinct()
        if empty:
            log.warning("%s: %d documents are empty (the first in line %d)", self.name, len(empty), empty[0])

    def _check_distinct(self) -> None:
        for place in np.flatnonzero(self._hashes[1:] == self._hashes[:-1]):
            first, second = sorted((self._order[place], self._order[place + 1]))
            if self.id(first) == self.id(second):
                raise InputError(
                    f'{self.name}:{self._line_number(second)}: the "_id" {self.id(second)!r} '
                    f"is already that of line {self._line_number(first)}"
                )

    def _line_number(self, row: int) -> int:
        return 1 + self._memory[: self.starts[row]].count(b"\n")

    def row(self, document_id: str) -> int | None:
        """Where the document with this id is, or None."""
        if document_id not in self._asked:
            self._asked[document_id] = self._find(document_id)
        return self._asked[document_id]

    def _find(self, document_id: str) -> int | None:
        wanted = np.uint64(_hash(document_id))
        place = int(np.searchsorted(self._hashes, wanted))
        while place < len(self) and self._hashes[place] == wanted:
            row = int(self._order[place])
            if self.id(row) == document_id:
                return row
            place += 1
        return None


class Texts(Sequence):
    """The texts of some rows of documents."""

    def __init__(self, documents: StoredDocuments, rows: Sequence[int]):
        self.documents, self.rows = documents, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return Texts(self.documents, self.rows[place])
        return self.documents.text(self.rows[place])


def _hash(document_id: str) -> int:
    return int.from_bytes(blake2b(document_id.encode(), digest_size=8).digest(), "little")
