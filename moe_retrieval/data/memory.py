"""Training data that a program has in memory: what `jsonl` reads of a line, as a tuple or a dict.

    (query, positive)    (query, positive, negative)    (query, document, 0 or 1)    {"query": ..., "positives": [...]}

One list is split as one file is; {"train": [...], "dev": [...], "test": [...]} is taken as it is.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moe_retrieval.data import jsonl
from moe_retrieval.data.cache import cache_dir, cache_key, cached_folder
from moe_retrieval.data.jsonl import SPLITS, Line, Source, parse_line
from moe_retrieval.data.records import check_unicode
from moe_retrieval.errors import InputError

Pairs = Iterable[Any] | Mapping[str, Iterable[Any]]


def keep(pairs: Pairs) -> Path:
    """-> a folder in BEIR's format, in the cache: the same for the same pairs, whichever process has them."""
    splits: Mapping[Any, Iterable[Any]] = pairs if isinstance(pairs, Mapping) else {None: pairs}
    if unknown := set(splits) - {None, *SPLITS}:
        raise InputError(f"pairs: expected some of {', '.join(SPLITS)}, got {', '.join(map(repr, unknown))}")
    sources = []
    for split, of_split in splits.items():
        name = f"pairs[{split!r}]" if split else "pairs"
        lines = [(f"{name}[{row}]", _line(pair, f"{name}[{row}]")) for row, pair in enumerate(of_split)]
        sources.append(Source(name, split, lines))
    key = cache_key((sys.modules[__name__], jsonl), sources)
    return cached_folder(cache_dir() / "memory" / f"pairs-{key}", lambda folder: jsonl.write(sources, folder))


def _line(pair: Any, where: str) -> Line:
    line = parse_line(pair, where)
    check_unicode([line.query, *line.positives, *line.negatives], where)
    return line
