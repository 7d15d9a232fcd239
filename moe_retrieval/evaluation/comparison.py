"""The run of another system, which must be of the same queries and documents to be compared."""

from pathlib import Path
from typing import Any

from moe_retrieval import checksums
from moe_retrieval.data import Collection
from moe_retrieval.errors import InputError
from moe_retrieval.evaluation.ranking import candidate_rows
from moe_retrieval.evaluation.results import read_origin
from moe_retrieval.evaluation.runs import Run, ranking, read_run

LOOKED_AT = 10
"""Documents of each query: those that the tested measure counts"""


def read_other(path: str | Path, collection: Collection, split: str, setting: str) -> Run:
    """A run.trec; raises where a difference to it would be one of queries, of documents or of setting."""
    path = Path(path)
    run = read_run(path)
    _check_origin(path, {"dataset_fingerprint": collection.fingerprint, "split": split, "setting": setting})
    _check_queries(path, run, collection, split)
    _check_documents(path, run, collection, candidate_rows(collection, split, setting), setting)
    return run


def _check_origin(path: Path, expected: dict[str, str]) -> None:
    """By what metrics.json says, where an evaluation of ours left one beside it."""
    origin = read_origin(path.parent)
    for name, value in expected.items():
        if name in origin and origin[name] != value:
            raise InputError(f"--against {path}: is of {name} {origin[name]!r}, expected {value!r}")
    if path.name in origin:
        checksums.check_files(path.parent, {path.name: origin[path.name]})


def _check_queries(path: Path, run: Run, collection: Collection, split: str) -> None:
    expected = collection.qrels(split)
    unknown = next((query for query in run if query not in expected), None)
    if unknown is not None:
        raise InputError(
            f"--against {path}: ranks for the query {unknown!r}, which is not in split {split} of {collection.name}"
        )
    missing = [query for query in expected if query not in run]
    if missing:
        raise InputError(
            f"--against {path}: has nothing for {len(missing)} of {len(expected)} queries (the first is {missing[0]!r})"
        )


def _check_documents(path: Path, run: Run, collection: Collection, candidates: Any, setting: str) -> None:
    pool = candidates if isinstance(candidates, range) else set(candidates)
    names = {name for scores in run.values() for name, _ in ranking(scores)[:LOOKED_AT]}
    for name in sorted(names):
        row = collection.documents.row(name)
        if row is None or row not in pool:
            where = collection.name if row is None else f"the setting {setting}"
            raise InputError(f"--against {path}: ranks the document {name!r}, which is not in {where}")
