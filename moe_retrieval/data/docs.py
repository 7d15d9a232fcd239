"""The documentation of the Python packages that are installed anyway, as a collection.

A query is a docstring's first sentence, its document is the qualified name and the rest. A sentence that several
docstrings begin with is one query with several answers; beyond `MOST_ANSWERS` it is boilerplate, and they all go. The
domain of a document is its package.
"""

import importlib.metadata
import importlib.util
import json
import logging
import sys
import sysconfig
from functools import partial
from pathlib import Path

from moe_retrieval.data import docstrings
from moe_retrieval.data.beir import load_folder, write_qrels
from moe_retrieval.data.cache import cache_dir, cache_key, cached_folder
from moe_retrieval.data.collection import Collection
from moe_retrieval.data.jsonl import SPLITS, hash_split, text_id
from moe_retrieval.progress import Meter

log = logging.getLogger("moe_retrieval")

PACKAGES = ("stdlib", "torch", "numpy", "scipy", "sklearn", "transformers", "pandas", "sympy", "networkx")
MOST_ANSWERS = 5


def load(packages: tuple[str, ...] = PACKAGES) -> Collection:
    """The pairs of those packages that are installed: read once, then from the cache."""
    roots = find_packages(packages)
    versions = {name: version for name, (_, version) in roots.items()}
    folder = cache_dir() / "docs" / cache_key((sys.modules[__name__], docstrings), sys.version, versions)
    if not folder.exists():
        log.warning("reading the documentation of %s (once)", ", ".join(roots))
    build = partial(write, {name: root for name, (root, _) in roots.items()})
    return load_folder(cached_folder(folder, build), "docs")


def find_packages(packages: tuple[str, ...]) -> dict[str, tuple[Path, str]]:
    """name -> (folder, version) of those that are installed; finding imports nothing."""
    found = {}
    for name in packages:
        if name == "stdlib":
            found[name] = Path(sysconfig.get_paths()["stdlib"]), sys.version.split()[0]
            continue
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            found[name] = Path(spec.submodule_search_locations[0]), _version(name)
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version({"sklearn": "scikit-learn"}.get(name, name))
    except importlib.metadata.PackageNotFoundError:  # on the path, but not installed
        return "unknown"


def write(roots: dict[str, Path], folder: Path) -> None:
    """Reads the packages and writes the BEIR format."""
    found = {}
    with Meter("reading documentation", len(roots), "packages") as meter:
        for name, root in roots.items():
            found[name] = list(docstrings.of_package(root, "" if name == "stdlib" else name))
            meter.advance()
    answers: dict[str, dict[str, dict]] = {}
    seen: set[str] = set()
    for package, docs in found.items():
        for doc in docs:
            if doc.name not in seen and doc.name.isascii():
                seen.add(doc.name)
                record = {"_id": doc.name, "title": doc.name, "text": doc.rest, "metadata": {"domain": package}}
                answers.setdefault(doc.summary, {})[doc.name] = record
    answers = {summary: records for summary, records in answers.items() if len(records) <= MOST_ANSWERS}
    with open(folder / "corpus.jsonl", "w", encoding="utf-8") as file:
        for records in answers.values():
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records.values())
    judged: dict[str, list[tuple[str, str, int]]] = {split: [] for split in SPLITS}
    with open(folder / "queries.jsonl", "w", encoding="utf-8") as file:
        for summary, records in answers.items():
            query_id = text_id(summary)
            file.write(json.dumps({"_id": query_id, "text": summary}, ensure_ascii=False) + "\n")
            judged[hash_split(summary)] += [(query_id, name, 1) for name in records]
    for split, rows in judged.items():
        write_qrels(folder, split, rows)
