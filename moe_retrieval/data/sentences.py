"""Sentences that people scored in pairs (STS Benchmark) or sorted into classes (TREC-6), or the same as JSON lines."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from moe_retrieval.data.plain import existing
from moe_retrieval.data.records import decode, read_lines, read_objects, string_field
from moe_retrieval.errors import InputError


class Pair(NamedTuple):
    first: str
    second: str
    score: float


class Labelled(NamedTuple):
    text: str
    label: str


def places(names: Sequence[str], data_dir: str | None) -> list[Path]:
    """The files or folders that are there of these paths, or of these names in the data directories."""
    roots = [Path(), *(Path(root) for root in (data_dir, os.environ.get("MOE_RETRIEVAL_DATA")) if root)]
    return [place for root in roots for name in names if (place := root / name).exists()]


def find(name: str, data_dir: str | None) -> Path:
    """A file or folder of this path, or of this name in the data directories."""
    if found := places([name], data_dir):
        return found[0]
    raise InputError(f"no data {name!r}: neither a path nor in a data directory ($MOE_RETRIEVAL_DATA)")


def read_pairs(name: str, split: str = "test", data_dir: str | None = None) -> list[Pair]:
    """STS Benchmark's sts-SPLIT.csv (tabs, the score in column 5, the sentences in 6 and 7); or a JSON-lines file, or
    SPLIT.jsonl of a folder, lines with sentence1, sentence2 and score."""
    path = find(name, data_dir)
    published = existing(path / f"sts-{split}.csv")
    if published.is_file():
        path = published
        pairs = [
            _sts_pair(decode(line, f"{path}:{number}"), f"{path}:{number}") for number, _, line in read_lines(path)
        ]
    else:
        path = path if path.is_file() else existing(path / f"{split}.jsonl")
        pairs = [
            Pair(string_field(record, "sentence1", where), string_field(record, "sentence2", where),
                 _number(record.get("score"), where))
            for where, record in read_objects(path)
        ]  # fmt: skip
    if not pairs:
        raise InputError(f"{path}: holds no pair")
    return pairs


def _sts_pair(line: str, where: str) -> Pair:
    columns = line.rstrip("\r\n").split("\t")
    if len(columns) < 7:
        raise InputError(f"{where}: expected 7 columns between tabs, got {len(columns)}")
    return Pair(columns[5], columns[6], _number(columns[4], where))


def _number(value: object, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (OverflowError, TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: expected a score that is a finite number, got {value!r:.40}")
    return number


TREC6_FILES = {"train": "train_5500.label", "test": "TREC_10.label"}


def read_labelled(name: str, split: str = "test", data_dir: str | None = None) -> list[Labelled]:
    """TREC-6's .label files ("DESC:manner How did ...": the coarse class is taken); or SPLIT.jsonl of a folder, lines
    with text and label."""
    folder = find(name, data_dir)
    published = _trec6_file(folder, split)
    if published is not None:
        items = [_trec_item(line, f"{published}:{number}") for number, _, line in read_lines(published)]
    else:
        lines = read_objects(existing(folder / f"{split}.jsonl"))
        items = [
            Labelled(string_field(item, "text", where), string_field(item, "label", where)) for where, item in lines
        ]
    if not items:
        raise InputError(f"{folder}: the split {split} holds no text")
    return items


def _trec6_file(folder: Path, split: str) -> Path | None:
    """However its name begins."""
    ending = TREC6_FILES.get(split)
    if ending is None:
        return None
    return min(folder.glob(f"*{ending}"), default=None) or min(folder.glob(f"*{ending}.gz"), default=None)


def _trec_item(line: bytes, where: str) -> Labelled:
    label, space, text = line.decode("latin-1").strip().partition(" ")  # what the published files are in
    if not space or ":" not in label:
        raise InputError(f"{where}: expected CLASS:kind and a question, got {line[:40]!r}")
    return Labelled(text, label.split(":")[0])
