"""Pairs of sentences as others publish them, by name, read as training data.

    snli, mnli      premise, what follows from it, what contradicts it: lists, of the premises that have both
    stsb            STS Benchmark: scores of 4 and more are label 1, those below 3 are label 0, the others are left out
    quora-pairs     questions that are duplicates of each other or are not: labelled pairs, split by the first question
    wikianswers     sets of questions that say the same, split by the first (WikiAnswers*.jsonl.gz)

Each is a folder of one of its names below the data directory or $MOE_RETRIEVAL_DATA, with the files as they come.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from moe_retrieval.data import jsonl, sentences
from moe_retrieval.data.beir import load_folder
from moe_retrieval.data.cache import cache_dir, cache_key, cached_folder
from moe_retrieval.data.collection import Collection
from moe_retrieval.data.jsonl import Line, Source
from moe_retrieval.data.plain import existing, opened
from moe_retrieval.data.records import decode, read_objects, read_values, string_field
from moe_retrieval.errors import InputError

ALIKE, UNLIKE = 4.0, 3.0
"""STS Benchmark: scores from 0 to 5; 4 is "the same but for details that do not matter"."""


class Published(NamedTuple):
    folders: tuple[str, ...]
    """Names that the folder may have."""
    files: dict[str, str | None]
    """Pattern of a file -> its split; None is split by a hash."""
    origin: str
    """Where people get it."""


KNOWN = {
    "snli": Published(
        ("snli", "snli_1.0"), {f"snli_1.0_{split}.jsonl": split for split in jsonl.SPLITS},
        "https://nlp.stanford.edu/projects/snli/",
    ),
    "mnli": Published(
        ("mnli", "multinli_1.0"),
        {
            "multinli_1.0_train.jsonl": "train", "multinli_1.0_dev_matched.jsonl": "dev",
            "multinli_1.0_dev_mismatched.jsonl": "test",
        },
        "https://cims.nyu.edu/~sbowman/multinli/",
    ),
    "stsb": Published(
        ("stsb", "stsbenchmark"), {f"sts-{split}.csv": split for split in jsonl.SPLITS},
        "http://ixa2.si.ehu.eus/stswiki/index.php/STSbenchmark",
    ),
    "quora-pairs": Published(
        ("quora-pairs",), {"quora_duplicate_questions.tsv": None},
        "https://quoradata.quora.com/First-Quora-Dataset-Release-Question-Pairs",
    ),
    "wikianswers": Published(
        ("wikianswers",), {"WikiAnswers*.jsonl": None},
        "https://huggingface.co/datasets/sentence-transformers/embedding-training-data",
    ),
}  # fmt: skip


def load(name: str, data_dir: str | None = None) -> Collection:
    folder, files = _find(name, data_dir)
    states = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = cache_key((sys.modules[__name__], jsonl, sentences), *states)

    def build(draft: Path) -> None:
        sources = [Source(str(file), split, _lines(name, folder, file, split)) for file, split in files.items()]
        jsonl.write(sources, draft)

    return load_folder(cached_folder(cache_dir() / "published" / f"{name}-{key}", build), name)


def _find(name: str, data_dir: str | None) -> tuple[Path, dict[Path, str | None]]:
    """-> the folder, and its files with their splits"""
    known = KNOWN[name]
    for folder in sentences.places(known.folders, data_dir):
        files = {}
        for pattern, split in known.files.items():
            found = min([*folder.glob(pattern), *folder.glob(f"{pattern}.gz")], default=None)
            if found is not None:
                files[found] = split
        if files:
            return folder, files
    raise InputError(
        f"no data {name!r}: expected {' or '.join(known.files)} in a folder {known.folders[0]} of the data directory "
        f"($MOE_RETRIEVAL_DATA); it is published at {known.origin}"
    )


def _lines(name: str, folder: Path, file: Path, split: str | None) -> Iterator[tuple[str, Line]]:
    if name in ("snli", "mnli"):
        return _of_inference(file)
    if name == "stsb":
        return _of_scores(folder, str(split))
    if name == "quora-pairs":
        return _of_duplicates(file)
    return ((where, jsonl.parse_line(value, where)) for where, value in read_values(file))


def _of_inference(file: Path) -> Iterator[tuple[str, Line]]:
    found: dict[str, dict[str, list[str]]] = {}
    for where, record in read_objects(file):
        first, second = (string_field(record, field, where) for field in ("sentence1", "sentence2"))
        label = string_field(record, "gold_label", where)  # "-" where people did not agree
        found.setdefault(first, {}).setdefault(label, []).append(second)
    for premise, by_label in found.items():
        follows, contradicts = (by_label.get(label, []) for label in ("entailment", "contradiction"))
        if follows and contradicts:
            yield str(file), Line("lists", premise, follows, contradicts, 1)


def _of_scores(folder: Path, split: str) -> Iterator[tuple[str, Line]]:
    for pair in sentences.read_pairs(str(folder), split):
        if pair.score >= ALIKE or pair.score < UNLIKE:
            yield str(folder), Line("labelled pairs", pair.first, [pair.second], [], int(pair.score >= ALIKE))


def _of_duplicates(file: Path) -> Iterator[tuple[str, Line]]:
    with opened(existing(file)) as binary:
        lines = (decode(line, f"{file}:{number}") for number, line in enumerate(binary, 1))
        rows = csv.DictReader(lines, delimiter="\t")
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                raise InputError(f"{file}:{rows.reader.line_num}: not columns between tabs ({error})") from None
            if row is None:
                return
            where = f"{file}:{rows.line_num}"
            first, second, label = (row.get(name) for name in ("question1", "question2", "is_duplicate"))
            if first is None or second is None or label not in ("0", "1"):
                raise InputError(f"{where}: expected question1, question2 and is_duplicate of 0 or 1, got {row!r:.80}")
            yield where, Line("labelled pairs", first, [second], [], int(label))
