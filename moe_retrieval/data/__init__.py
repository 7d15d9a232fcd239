"""Where texts come from: the documentation of installed packages, data sets by name, BEIR-format folders, files."""

import os
from collections.abc import Sequence
from pathlib import Path

from moe_retrieval.data.collection import Collection as Collection
from moe_retrieval.data.collection import Qrels as Qrels
from moe_retrieval.data.plain import STANDARD_INPUT, existing
from moe_retrieval.data.records import Documents
from moe_retrieval.dataset_names import HUB
from moe_retrieval.errors import InputError


def load(
    name_or_path: str | os.PathLike, data_dir: str | os.PathLike | None = None, columns: str | None = None
) -> Collection:
    """The collection of this name or path.

    "docs" is the documentation of the installed Python packages. A file or folder is JSON lines, BEIR format or the
    Multi-Domain Benchmark's, whose names are "multi-domain/cs" and the like. "hf:owner/name" is the hub's, where
    `columns` says which column is which field. "snli" and the others of `published.KNOWN` are pairs of sentences. Any
    other name is a data set of BEIR: under `data_dir`, under $MOE_RETRIEVAL_DATA, in the cache, or downloaded.
    """
    from moe_retrieval.data import beir, docs, hub, jsonl, multi_domain, published

    name = os.fspath(name_or_path)
    path = Path(name)
    if name == "docs":
        return docs.load()
    if name.startswith(HUB):
        return hub.load(name, columns)
    if path.is_file() or name.endswith((".jsonl", ".jsonl.gz")) or existing(path / "train.jsonl").is_file():
        return jsonl.load(path)
    if multi_domain.is_folder(path):
        return multi_domain.load_folder(path)
    if beir.find(name, data_dir) is None:
        if name.startswith(multi_domain.PREFIX):
            return multi_domain.load(name, data_dir)
        if name in published.KNOWN:
            return published.load(name, os.fspath(data_dir) if data_dir else None)
    return beir.load(name, data_dir)


def load_all(name: str, data_dir: str | os.PathLike | None = None, columns: str | None = None) -> list[Collection]:
    """The collections of this name or path: of "cqadupstack", one for each of its forums."""
    from moe_retrieval.data import beir

    return [load(member, data_dir, columns) for member in beir.members(name, data_dir)]


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
