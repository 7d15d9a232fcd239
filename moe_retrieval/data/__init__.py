"""Where texts come from: the documentation of installed packages, BEIR, any BEIR-format folder, JSON-lines files."""

import os
from collections.abc import Sequence
from pathlib import Path

from moe_retrieval.data.collection import Collection as Collection
from moe_retrieval.data.collection import Qrels as Qrels
from moe_retrieval.data.plain import STANDARD_INPUT, existing
from moe_retrieval.data.records import Documents
from moe_retrieval.errors import InputError


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


def load_all(name: str, data_dir: str | os.PathLike | None = None) -> list[Collection]:
    """The collections of this name or path: of "cqadupstack", one for each of its forums."""
    from moe_retrieval.data import beir

    return [load(member, data_dir) for member in beir.members(name, data_dir)]


def check_names(collections: Sequence[Collection]) -> None:
    """Raises where two are called alike: what is written of one would lie where the other's is."""
    names = [collection.name for collection in collections]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two data sets are called {name}: rename the folder of one")


def load_documents(name_or_path: str, data_dir: str | None = None) -> Documents:
    """The documents of a corpus.jsonl, also .gz, of standard input ("-"), or of a collection."""
    if name_or_path == STANDARD_INPUT or Path(name_or_path).is_file():
        return Documents(name_or_path)
    return load(name_or_path, data_dir).documents
