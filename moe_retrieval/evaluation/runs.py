"""Runs: query id -> document id -> score, in memory and in TREC's format.

The ranking of a run is by score in single precision, downwards, and among equal scores by document id, downwards:
trec_eval's rule, by which every measure goes. A space of an id is written as a sign for it, so that any program of TREC
finds six columns.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from moe_retrieval.data.records import SPACE, decode, read_lines
from moe_retrieval.errors import InputError

Run = dict[str, dict[str, float]]


def ranking(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """Documents and scores in trec_eval's order."""
    single = {document: float(np.float32(score)) for document, score in scores.items()}
    return sorted(sorted(single.items(), reverse=True), key=lambda item: -item[1])


def write_run(path: str | Path, run: Run, tag: str = "moe_retrieval") -> None:
    """TREC format: query Q0 document rank score tag"""
    with open(path, "w", encoding="utf-8") as file:
        for query, scores in run.items():
            for rank, (document, score) in enumerate(ranking(scores), 1):
                names = query.replace(" ", SPACE), document.replace(" ", SPACE)
                file.write(f"{names[0]} Q0 {names[1]} {rank} {score:.9g} {tag}\n")


def read_run(path: str | Path) -> Run:
    run: Run = {}
    for number, _, line in read_lines(path):
        where = f"{path}:{number}"
        columns = decode(line, where).split()
        if len(columns) != 6:
            raise InputError(f"{where}: expected query Q0 document rank score tag, got {len(columns)} columns")
        query, _, document, _, score, _ = (column.replace(SPACE, " ") for column in columns)
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f"{where}: expected a score that is a finite number, got {score!r:.40}")
        if document in run.setdefault(query, {}):
            raise InputError(f"{where}: the document {document!r} comes twice for query {query!r}")
        run[query][document] = value
    return run
