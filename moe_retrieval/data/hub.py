"""Data sets of Hugging Face's hub, by the package `datasets`: hf:OWNER/NAME, or hf:OWNER/NAME:CONFIGURATION.

A row is a line as `jsonl` has it: the columns that have the names of its fields, or those that `columns` names. Without
the hub, `datasets` takes what it has in its own cache.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from moe_retrieval.data import jsonl
from moe_retrieval.data.beir import load_folder
from moe_retrieval.data.cache import cache_dir, cache_key, cached_folder
from moe_retrieval.data.collection import Collection
from moe_retrieval.data.jsonl import FIELDS, Line, Source, parse_line
from moe_retrieval.dataset_names import HUB
from moe_retrieval.errors import InputError

SPLITS = {"train": "train", "validation": "dev", "dev": "dev", "test": "test"}
"""Theirs -> ours; others are left out."""


def load(name: str, columns: str | None = None) -> Collection:
    """`columns` is like query=question,positive=answer."""
    mapping = parse_columns(columns) if columns else {}
    if find_spec("datasets") is None:
        raise InputError(f"{name} needs the package datasets: pip install datasets")
    import datasets

    repository, _, configuration = name.removeprefix(HUB).partition(":")
    try:
        found = datasets.load_dataset(repository, configuration or None)
    except Exception as error:  # a dozen classes, from no network to no such configuration: one line for all
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"cannot get {name}: {first_line:.300}") from None
    splits = {SPLITS[split]: (split, rows) for split, rows in found.items() if split in SPLITS}
    if not splits:
        raise InputError(f"{name} has the splits {', '.join(found)}; expected some of {', '.join(SPLITS)}")
    sources = []
    for ours, (split, rows) in splits.items():
        chosen = _chosen(rows.column_names, mapping, name)
        where = f"{name} {split}"
        sources.append(Source(where, ours if len(splits) > 1 else None, _lines(rows, chosen, where)))
    marks = [(split, rows._fingerprint) for split, rows in splits.values()]
    key = cache_key((sys.modules[__name__], jsonl), name, marks, mapping)
    folder = cached_folder(cache_dir() / "hub" / key, lambda draft: jsonl.write(sources, draft))
    return load_folder(folder, "-".join(part for part in re.split("[/:]", name.removeprefix(HUB)) if part))


def parse_columns(text: str) -> dict[str, str]:
    """
    >>> parse_columns("query=question,positive=answer")
    {'query': 'question', 'positive': 'answer'}
    """
    mapping = dict(part.strip().partition("=")[::2] for part in text.split(","))
    if not all(field in FIELDS and column for field, column in mapping.items()):
        raise InputError(
            f"--columns: expected fields and columns like query=question,positive=answer, of {', '.join(FIELDS)}; "
            f"got {text!r}"
        )
    return mapping


def _chosen(names: list[str], mapping: Mapping[str, str], dataset: str) -> dict[str, str]:
    """Field -> column."""
    if missing := [column for column in mapping.values() if column not in names]:
        raise InputError(f"--columns: {dataset} has no column {missing[0]!r}; it has {', '.join(names)}")
    chosen = dict(mapping) or {name: name for name in names if name in FIELDS}
    if len(chosen) < 2:
        raise InputError(
            f"{dataset} has the columns {', '.join(names)}: --columns query=COLUMN,positive=COLUMN says what they are"
        )
    return chosen


def _lines(rows: Any, chosen: Mapping[str, str], where: str) -> Iterator[tuple[str, Line]]:
    for number, row in enumerate(rows.select_columns(list(chosen.values()))):
        place = f"{where}:{number}"
        yield place, parse_line({field: row[column] for field, column in chosen.items()}, place)
