"""Where texts come from: the documentation of installed packages, BEIR, any BEIR-format folder, JSON-lines files."""

import os
from pathlib import Path

from moe_retrieval.data.collection import Collection as Collection
from moe_retrieval.data.collection import Qrels as Qrels
from moe_retrieval.data.plain import STANDARD_INPUT, existing
from moe_retrieval.data.records import Documents


def load(name_or_path: str | os.PathLike, data_dir: str | os.PathLike | None = None) -> Collection:
    """The collection of this name or path.

    "docs" is the documentation of the installed Python packages. A file or folder is JSON lines or BEIR format. Any
    other name is a data set of BEIR: under `data_dir`, under $MOE_RETRIEVAL_DATA, in the cache, or downloaded.
    """
    from moe_retrieval.data import beir, docs, jsonl

    name = os.fspath(name_or_path)
    path = Path(name)
    if name == "docs":
        return docs.load()
    if path.is_file() or name.endswith((".jsonl", ".jsonl.gz")) or existing(path / "train.jsonl").is_file():
        return jsonl.load(path)
    return beir.load(name, data_dir)


def load_documents(name_or_path: str, data_dir: str | None = None) -> Documents:
    """The documents of a corpus.jsonl, also .gz, of standard input ("-"), or of a collection."""
    if name_or_path == STANDARD_INPUT or Path(name_or_path).is_file():
        return Documents(name_or_path)
    return load(name_or_path, data_dir).documents
