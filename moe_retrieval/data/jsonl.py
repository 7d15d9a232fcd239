"""JSON-lines files of training data, turned into a BEIR-format folder in the cache.

Five kinds of line, one kind a file (the names in brackets are understood too, others are refused):

    pairs       {"query": "...", "positive": "..."}                               (anchor; document, answer)
    labelled    {"query": "...", "document": "...", "label": 0 or 1}              (sentence1, sentence2)
    triplets    {"query": "...", "positive": "...", "negative": "..."}
    lists       {"query": "...", "positives": ["...", ...], "negatives": ["...", ...]}    (pos, neg)
    sets        {"set": ["...", "...", ...]}, all of which say the same: the first asks for the others

A pair may also be ["...", "..."], a triplet ["...", "...", "..."], a labelled pair ["...", "...", 1].

A folder may hold train.jsonl, dev.jsonl and test.jsonl. One file alone is split by a hash of the query: 90% train, 5%
dev, 5% test. The same text is the same document, wherever it comes. Any file may be compressed and end in .gz.
"""

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from moe_retrieval.data.beir import load_folder, write_qrels
from moe_retrieval.data.cache import cache_dir, cache_key, cached_folder
from moe_retrieval.data.collection import Collection
from moe_retrieval.data.plain import existing
from moe_retrieval.data.records import read_values
from moe_retrieval.errors import InputError

log = logging.getLogger("moe_retrieval")

SPLITS = ("train", "dev", "test")

NAMES = {
    "query": ("query", "anchor", "sentence1"),
    "positive": ("positive", "document", "answer", "sentence2"),
    "positives": ("positives", "pos"),
    "negative": ("negative",),
    "negatives": ("negatives", "neg"),
    "label": ("label",),
}
FIELDS = {name: field for field, names in NAMES.items() for name in names}

MARKS = {
    "lists": ("positives",),
    "labelled pairs": ("positive", "label"),
    "triplets": ("positive", "negative"),
    "pairs": ("positive",),
}
"""Kind of line -> the fields that make it one; the first that fits is the line's."""


class Line(NamedTuple):
    kind: str
    query: str
    positives: list[str]
    negatives: list[str]
    label: int


def load(path: str | Path) -> Collection:
    """A JSON-lines file, or a folder with a train.jsonl."""
    path = Path(path)
    files = [path] if path.is_file() else [existing(path / f"{split}.jsonl") for split in SPLITS]
    files = [file for file in files if file.is_file()]
    if not files:
        raise InputError(f"{path}: no such file, or a folder without a train.jsonl")
    states = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    name = _name(path)
    folder = cache_dir() / "jsonl" / f"{name}-{cache_key((sys.modules[__name__],), *states)}"
    return load_folder(cached_folder(folder, lambda draft: convert(files, draft, path.is_dir())), name)


def _name(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".jsonl")


def hash_split(text: str) -> str:
    """The split of a query: 90% train, 5% dev, 5% test, the same for the same text."""
    place = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") % 20
    return {0: "dev", 1: "test"}.get(place, "train")


def convert(files: list[Path], folder: Path, are_splits: bool) -> None:
    """Files of lines, each a split by its name or else split itself, to the BEIR format."""
    sources = []
    for file in files:
        lines = ((where, parse_line(value, where)) for where, value in read_values(file))
        sources.append(Source(str(file), _name(file) if are_splits else None, lines))
    write(sources, folder)


class Source(NamedTuple):
    """Where lines come from."""

    name: str
    split: str | None
    """Of all lines; None splits them by a hash of the query."""
    lines: Iterable[tuple[str, Line]]
    """Where each is, and it."""


def write(sources: Sequence[Source], folder: Path) -> None:
    """The BEIR format: corpus, queries, qrels of each split, given negatives."""
    with _Writer(folder) as writer:
        for source in sources:
            kind = None
            for where, line in source.lines:
                if kind not in (None, line.kind):
                    raise InputError(f"{where}: expected {kind} as in the lines before, got {line.kind}")
                kind = line.kind
                writer.add(line, source.split or hash_split(line.query))
            if kind is None:
                raise InputError(f"{source.name}: holds no example")
        writer.finish()
    for what, count in writer.counts.items():
        log.warning("%s: %d %s", sources[0].name, count, what)


def parse_line(value: Any, where: str) -> Line:
    """Of an object, or of an array that stands for one."""
    record = value if isinstance(value, dict) else _as_object(value, where)
    if set(record) == {"set"}:
        return _parse_set(record["set"], where)
    names = _names(record, where)

    def texts(field: str) -> list[str]:
        value = record[names[field]] if field in names else []
        listed = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in listed):
            raise InputError(f'{where}: expected "{names[field]}" to be text, got {value!r:.60}')
        return listed

    query = record[names["query"]] if "query" in names else None
    if not isinstance(query, str):
        raise InputError(
            f'{where}: expected a "query" that is a string; this line has {", ".join(record) or "nothing"}'
        )
    kind = _kind(names, where)
    positives = texts("positives" if kind == "lists" else "positive")
    if not positives:
        raise InputError(f"{where}: expected at least one positive, got none")
    negatives = texts("negatives") if kind == "lists" else texts("negative")
    return Line(kind, query, positives, negatives, _label(record, where) if kind == "labelled pairs" else 1)


def _as_object(value: Any, where: str) -> dict[str, Any]:
    parts = list(value) if isinstance(value, tuple | list) else []
    if len(parts) == 2:
        return {"query": parts[0], "positive": parts[1]}
    if len(parts) == 3:
        third = "negative" if isinstance(parts[2], str) else "label"
        return {"query": parts[0], "positive": parts[1], third: parts[2]}
    raise InputError(
        f"{where}: expected (query, positive), (query, positive, negative), (query, document, label) or an object, got "
        f"{value!r:.60}"
    )


def _parse_set(texts: Any, where: str) -> Line:
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        raise InputError(f'{where}: expected a "set" of two texts or more, got {texts!r:.60}')
    first, *others = texts
    return Line("sets", first, others, [], 1)


def _names(record: dict[str, Any], where: str) -> dict[str, str]:
    """Field -> the name by which this line has it. A name that is not understood could change what the line means."""
    names: dict[str, str] = {}
    for name, value in record.items():
        if name not in FIELDS:
            nearest = get_close_matches(name, FIELDS, 1)
            known = f'nearest is "{nearest[0]}"' if nearest else f"expected some of {', '.join(FIELDS)}"
            raise InputError(f'{where}: unknown field "{name:.40}"; {known}')
        if value is None and name != "label":
            continue
        other = names.setdefault(FIELDS[name], name)
        if other != name:
            raise InputError(f'{where}: "{other}" and "{name}" are one field by two names')
    return names


def _kind(names: dict[str, str], where: str) -> str:
    kind = next((kind for kind, marks in MARKS.items() if all(mark in names for mark in marks)), None)
    if kind is None:
        raise InputError(
            f'{where}: expected a "positive", "positives" or "document"; this line has {", ".join(names.values())}'
        )
    own = ("query", *MARKS[kind], *(["negatives"] if kind == "lists" else []))
    foreign = next((names[field] for field in names if field not in own), None)
    if foreign is not None:
        marks = " and ".join(f'"{names[mark]}"' for mark in MARKS[kind])
        raise InputError(f'{where}: a line with {marks} has no "{foreign}"')
    return kind


def _label(record: dict[str, Any], where: str) -> int:
    if record["label"] not in (0, 1):
        raise InputError(f'{where}: expected a "label" of 0 or 1, got {record["label"]!r:.40}')
    return int(record["label"])


def text_id(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()


class _Writer(ExitStack):
    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder
        self.corpus = self.enter_context(open(folder / "corpus.jsonl", "w", encoding="utf-8"))  # noqa: SIM115
        self.queries = self.enter_context(open(folder / "queries.jsonl", "w", encoding="utf-8"))  # noqa: SIM115
        self.documents_seen: set[str] = set()
        self.queries_seen: set[str] = set()
        self.negatives: dict[str, list[str]] = {}
        self.qrels: dict[str, dict[tuple[str, str], int]] = {}
        self.counts: Counter[str] = Counter()

    def add(self, line: Line, split: str) -> None:
        query_id = self._text(line.query, self.queries, self.queries_seen)
        judged = self.qrels.setdefault(split, {})
        for text in line.positives:
            pair = (query_id, self._text(text, self.corpus, self.documents_seen))
            if pair in judged:
                self.counts["pairs come twice and count once"] += 1
            judged[pair] = max(line.label, judged.get(pair, 0))
        named = self.negatives.setdefault(query_id, [])
        for text in line.negatives:
            document_id = self._text(text, self.corpus, self.documents_seen)
            if document_id not in named:
                named.append(document_id)

    def _text(self, text: str, file, seen: set[str]) -> str:
        name = text_id(text)
        if name not in seen:
            seen.add(name)
            file.write(json.dumps({"_id": name, "text": text}, ensure_ascii=False) + "\n")
        return name

    def finish(self) -> None:
        for split, judged in self.qrels.items():
            write_qrels(self.folder, split, ((*pair, label) for pair, label in judged.items()))
        with open(self.folder / "negatives.jsonl", "w", encoding="utf-8") as file:
            for query_id, named in self.negatives.items():
                if named:
                    file.write(json.dumps({"_id": query_id, "negatives": named}) + "\n")
