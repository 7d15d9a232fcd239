"""The Multi-Domain Benchmark (Bassani et al. 2022): papers, and the titles of others that cite them as queries.

A folder of it has collection.jsonl, lines with id, title and text, and for each of train, val and test a queries.jsonl,
lines with id, text and rel_doc_ids; beside it there may be a qrels.json, {query id: {document id: relevance}}.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from moe_retrieval.data import beir
from moe_retrieval.data.archives import fetch_archive
from moe_retrieval.data.cache import cache_dir, cache_key, cached_folder
from moe_retrieval.data.collection import Collection
from moe_retrieval.data.plain import existing
from moe_retrieval.data.records import read_objects, record_id, string_field
from moe_retrieval.errors import InputError
from moe_retrieval.files import read_object
from moe_retrieval.progress import Meter

PREFIX = "multi-domain/"
DOMAINS = {
    "cs": "computer_science",
    "ps": "political_science",
    "physics": "physics",
    "psychology": "psychology",
}
"""Behind the prefix -> the name of the folder, and of the archive."""

URL = "https://zenodo.org/record/6606557/files/{name}.zip"
SPLITS = {"train": "train", "val": "dev", "test": "test"}
"""Theirs -> ours."""


def load(name: str, data_dir: str | os.PathLike | None = None) -> Collection:
    """ "multi-domain/cs": under the data directory, under $MOE_RETRIEVAL_DATA, in the cache, or downloaded."""
    domain = name.removeprefix(PREFIX)
    if domain not in DOMAINS:
        known = ", ".join(f"{PREFIX}{each}" for each in DOMAINS)
        raise InputError(f"no data set {name!r}: expected one of {known}")
    return load_folder(find((domain, DOMAINS[domain]), data_dir) or download(DOMAINS[domain]), name)


def is_folder(folder: Path) -> bool:
    return existing(folder / "collection.jsonl").is_file()


def find(names: Sequence[str], data_dir: str | os.PathLike | None) -> Path | None:
    roots = [Path(root) for root in (data_dir, os.environ.get("MOE_RETRIEVAL_DATA")) if root]
    places = [place for root in roots for name in names for place in (root / PREFIX / name, root / name)]
    return next(filter(is_folder, places), None)


def download(domain: str) -> Path:
    urls = [*(url.replace("{name}", domain) for url in beir.own_mirrors()), URL.replace("{name}", domain)]
    return cached_folder(cache_dir() / PREFIX / domain, lambda draft: fetch_archive(domain, urls, draft, None))


def load_folder(folder: Path, name: str | None = None) -> Collection:
    of_splits = [path for split in SPLITS for path in (_queries(folder, split), _qrels(folder, split))]
    files = [path for path in (_collection(folder), *of_splits) if path.is_file()]
    states = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    name = name or folder.name
    place = cache_dir() / PREFIX / f"{folder.name}-{cache_key((sys.modules[__name__],), *states)}"
    return beir.load_folder(cached_folder(place, lambda draft: convert(folder, draft)), name)


def convert(source: Path, folder: Path) -> None:
    """Writes the BEIR format."""
    with Meter(f"converting {source}"):
        with open(folder / "corpus.jsonl", "w", encoding="utf-8") as corpus:
            for where, record in read_objects(_collection(source)):
                document = {"_id": _id(record, where)}
                document |= {field: _text(record, field, where) for field in ("title", "text")}
                corpus.write(json.dumps(document, ensure_ascii=False) + "\n")
        queries: dict[str, str] = {}
        for split, ours in SPLITS.items():
            if _queries(source, split).is_file():
                beir.write_qrels(folder, ours, _judged(source, split, queries))
        with open(folder / "queries.jsonl", "w", encoding="utf-8") as file:
            for query_id, text in queries.items():
                file.write(json.dumps({"_id": query_id, "text": text}, ensure_ascii=False) + "\n")


def _judged(source: Path, split: str, queries: dict[str, str]) -> Iterator[tuple[str, str, int]]:
    """-> query id, document id, relevance; `queries` gets the texts."""
    qrels = _qrels(source, split)
    judged = read_object(qrels) if qrels.is_file() else {}
    for where, record in read_objects(_queries(source, split)):
        query_id, text = _id(record, where), string_field(record, "text", where)
        if queries.setdefault(query_id, text) != text:
            raise InputError(f"{where}: the query {query_id!r} has come before with another text")
        answers = judged.get(query_id)
        if answers is None:
            named = record.get("rel_doc_ids")
            if not isinstance(named, list) or not all(isinstance(document, str | int) for document in named):
                raise InputError(f'{where}: expected "rel_doc_ids" that are a list of document ids, got {named!r:.40}')
            answers = dict.fromkeys(named, 1)
        elif not isinstance(answers, dict) or not all(isinstance(each, int) for each in answers.values()):
            raise InputError(f"{qrels}: expected {{document id: relevance}} of {query_id!r}, got {answers!r:.40}")
        yield from ((query_id, str(document), int(relevance)) for document, relevance in answers.items())


def _id(record: dict[str, Any], where: str) -> str:
    return record_id({"_id": record.get("id")}, where)


def _text(record: dict[str, Any], field: str, where: str) -> str:
    """Many papers have no abstract."""
    return "" if record.get(field) is None else string_field(record, field, where)


def _collection(folder: Path) -> Path:
    return existing(folder / "collection.jsonl")


def _queries(folder: Path, split: str) -> Path:
    return existing(folder / split / "queries.jsonl")


def _qrels(folder: Path, split: str) -> Path:
    return folder / split / "qrels.json"
