"""What a ranking is worth: trec_eval's measures, and whether one system really is better than another.

A run is query id -> document id -> score. Its ranking is by score in single precision, downwards, and among equal
scores by document id, downwards: trec_eval's rule, by which every measure here goes. Against BEIR's own evaluator:
its MRR breaks ties by the order of insertion, and its other means leave out queries that have no run; here such a
query counts 0.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moe_retrieval.data.collection import Qrels
from moe_retrieval.data.records import decode, read_lines
from moe_retrieval.errors import InputError

Run = dict[str, dict[str, float]]

CUTS = (1, 3, 5, 10, 100, 1000)
TREC_NAMES = {"NDCG": "ndcg_cut", "MAP": "map_cut", "Recall": "recall", "P": "P"}
HEADLINE = ("NDCG@10", "Recall@100", "MRR@10")


class Measures(NamedTuple):
    means: dict[str, float]
    """NDCG@10 and the like -> mean over the queries of the qrels"""
    per_query: dict[str, np.ndarray]
    """The same names -> the value of each query, in the order of the qrels"""


def evaluate_run(qrels: Qrels, run: Run, cuts: Sequence[int] = CUTS) -> Measures:
    """NDCG, MAP, Recall, P and MRR at each cut; MRR@k is the reciprocal rank in the run's first k."""
    import pytrec_eval

    if not qrels:
        raise InputError("qrels: there is no query to evaluate")
    wanted = {f"{name}.{','.join(map(str, cuts))}" for name in TREC_NAMES.values()} | {"recip_rank"}
    found = pytrec_eval.RelevanceEvaluator(qrels, wanted).evaluate(
        {query: run[query] for query in qrels if query in run}
    )
    per_query = {}
    for name, trec_name in TREC_NAMES.items():
        for cut in cuts:
            values = [found.get(query, {}).get(f"{trec_name}_{cut}", 0.0) for query in qrels]
            per_query[f"{name}@{cut}"] = np.array(values)
    reciprocal = np.array([found.get(query, {}).get("recip_rank", 0.0) for query in qrels])
    for cut in cuts:
        per_query[f"MRR@{cut}"] = np.where(reciprocal >= 1 / cut, reciprocal, 0.0)
    return Measures({name: float(np.mean(values)) for name, values in per_query.items()}, per_query)


def ranking(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """Documents and scores in trec_eval's order."""
    single = {document: float(np.float32(score)) for document, score in scores.items()}
    return sorted(sorted(single.items(), reverse=True), key=lambda item: -item[1])


def write_run(path: str | Path, run: Run, tag: str = "moe_retrieval") -> None:
    """TREC format: query Q0 document rank score tag"""
    with open(path, "w", encoding="utf-8") as file:
        for query, scores in run.items():
            for rank, (document, score) in enumerate(ranking(scores), 1):
                file.write(f"{query} Q0 {document} {rank} {score:.9g} {tag}\n")


def read_run(path: str | Path) -> Run:
    run: Run = {}
    for number, _, line in read_lines(path):
        where = f"{path}:{number}"
        columns = decode(line, where).split()
        if len(columns) != 6:
            raise InputError(f"{where}: expected query Q0 document rank score tag, got {len(columns)} columns")
        query, _, document, _, score, _ = columns
        try:
            value = float(score)
        except ValueError:
            raise InputError(f"{where}: expected a score that is a number, got {score!r}") from None
        if document in run.setdefault(query, {}):
            raise InputError(f"{where}: the document {document!r} comes twice for query {query!r}")
        run[query][document] = value
    return run


EXACT_UP_TO = 16
"""Pairs that differ: 65,536 sign patterns"""


def randomization_test(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, rounds: int = 100_000, seed: int = 0
) -> float:
    """Paired randomisation test: p of a mean difference this large, either way, if a and b were interchangeable.

    Values of the same queries in the same order. Each round exchanges the two values of random queries; with few
    queries that differ, every exchange is tried instead and the p is exact.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"a and b must be values of the same queries, got shapes {a.shape} and {b.shape}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    differences = (a - b)[a != b]
    observed = abs(differences.sum()) * (1 - 1e-12)  # another order of summation is no smaller difference
    if len(differences) <= EXACT_UP_TO:
        patterns = np.arange(2 ** len(differences))[:, None] >> np.arange(len(differences)) & 1
        return float(np.mean(np.abs((2.0 * patterns - 1) @ differences) >= observed))
    rng = np.random.default_rng(seed)
    as_large = 0
    for start in range(0, rounds, 1000):
        flips = rng.integers(2, size=(min(1000, rounds - start), len(differences)), dtype=np.int8)
        as_large += int(np.sum(np.abs((2.0 * flips - 1) @ differences) >= observed))
    return (as_large + 1) / (rounds + 1)


def table(rows: Mapping[str, Measures], against: str | None = None, names: Sequence[str] = HEADLINE) -> str:
    """A Markdown table, a system a row; `against` names the row that the others are tested against, on NDCG@10."""
    header = ["", *names] + ([f"p against {against}"] if against else [])
    lines = [header, ["---"] * len(header)]
    for system, measures in rows.items():
        line = [system, *(f"{measures.means[name]:.3f}" for name in names)]
        if against and system != against:
            p = randomization_test(measures.per_query["NDCG@10"], rows[against].per_query["NDCG@10"])
            line.append(f"{p:.4f}" if p >= 0.0001 else "<0.0001")
        elif against:
            line.append("")
        lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines)
