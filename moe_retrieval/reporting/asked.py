"""Queries to look through: how each system ranks them, and the texts, so that a gain or a loss can be understood."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from moe_retrieval import data
from moe_retrieval.data import Collection
from moe_retrieval.errors import InputError
from moe_retrieval.evaluation.domains import domains_of
from moe_retrieval.evaluation.metrics import evaluate_run
from moe_retrieval.evaluation.results import kept_run
from moe_retrieval.evaluation.runs import Run, ranking
from moe_retrieval.evaluation.table import TESTED
from moe_retrieval.progress import Meter
from moe_retrieval.reporting.part import Browser, Missing, Part
from moe_retrieval.reporting.sources import Analysis, Found, Sources
from moe_retrieval.retrieval.snippet import snippet

TITLE = "Query by query"

SIZE = 220
"""Characters of a document that are told"""

RELEVANT = 2
"""Documents that answer a query that are told"""

OF_COMPARISON = f"""{TESTED} of a query is the mean over seeds; documents and ranks are those of the first seed. These
are {{count}} of {{all}} queries: those on which systems differ most."""
OF_ANALYSIS = "Those that gain and lose most, of the runs that were analysed against another."

Query = dict[str, Any]


class Ranked(NamedTuple):
    """What became of the queries under one system."""

    ndcg_Q: np.ndarray
    """In the order of the qrels, the mean over the seeds"""
    first: Run
    """Of the first seed"""


def asked(sources: Sources, queries: int, dataset: str | None, data_dir: str | None) -> Part | Missing:
    """`queries` is the most that are told; the others are where the texts lie, None as the comparison says."""
    if queries == 0:
        return Missing(TITLE, "--queries 0 leaves it out")
    if sources.runs and sources.comparison is not None:
        try:
            return _of_comparison(sources, queries, _collection(sources, dataset, data_dir))
        except InputError as error:
            if dataset is not None:  # what was asked for by name is no matter of chance
                raise
            reason = str(error)
    else:
        reason = "nothing was compared here"
    rows = [row for analysis in sources.analyses for row in _of_analysis(analysis)][:queries]
    if rows:
        systems = ["the model", "against"]
        return Part(TITLE, [Browser({"systems": systems, "measure": TESTED, "queries": rows}, OF_ANALYSIS)])
    return Missing(TITLE, f"no texts: {reason}", "python -m moe_retrieval.compare")


# Of a comparison: by its rankings, with the texts of its collection.


def _collection(sources: Sources, dataset: str | None, data_dir: str | None) -> Collection:
    assert sources.comparison is not None
    flags = sources.flags()
    name = dataset or flags.get("dataset") or sources.comparison["collection"]
    collection = data.load(name, data_dir or flags.get("data_dir"), flags.get("columns"))
    if collection.fingerprint != sources.comparison["fingerprint"]:
        raise InputError(f"{name} is not what it was when it was compared on (another content hash)")
    return collection


def _of_comparison(sources: Sources, most: int, collection: Collection) -> Part:
    split = sources.split
    systems = _rankings(sources, collection, split)
    if not systems:
        raise InputError(f"no run.trec of {collection.name} is whole")
    names = list(collection.qrels(split))
    ndcg_SQ = np.stack([ranked.ndcg_Q for ranked in systems.values()])
    chosen = np.argsort(-np.ptp(ndcg_SQ, axis=0), kind="stable")[:most]
    domains = {place: name for name, places in domains_of(collection, split).items() for place in places.tolist()}
    told = [
        {
            "id": names[place],
            "text": collection.all_queries[names[place]],
            "domain": domains.get(place, ""),
            "scores": [round(float(ranked.ndcg_Q[place]), 4) for ranked in systems.values()],
            "documents": _documents(collection, split, names[place], list(systems.values())),
        }
        for place in chosen.tolist()
    ]
    content = {"systems": list(systems), "measure": TESTED, "queries": told}
    return Part(TITLE, [Browser(content, OF_COMPARISON.format(count=len(told), all=len(names)))])


def _rankings(sources: Sources, collection: Collection, split: str) -> dict[str, Ranked]:
    """Of each system whose rankings are there and whole."""
    assert sources.comparison is not None
    origin = {"dataset_fingerprint": collection.fingerprint, "split": split, "setting": "full"}
    found = {}
    qrels = collection.qrels(split)
    with Meter("rankings", sum(map(len, sources.runs.values())), "rankings") as meter:
        for name, runs in sources.runs.items():
            ranked = [run for folder in meter.over(runs) if (run := kept_run(folder, origin)) is not None]
            if ranked:
                scores = [evaluate_run(qrels, run, cuts=(10,)).per_query[TESTED] for run in ranked]
                found[name] = Ranked(np.mean(scores, axis=0), ranked[0])
    return found


def _documents(collection: Collection, split: str, query: str, systems: Sequence[Ranked]) -> list[dict[str, Any]]:
    """Those that answer, with their ranks, and what each system has first; no document twice."""
    ranks = [{name: rank for rank, (name, _) in enumerate(ranking(each.first.get(query, {})), 1)} for each in systems]
    judged = collection.qrels(split)[query]
    relevant = sorted((name for name, score in judged.items() if score > 0), key=lambda name: -judged[name])
    firsts = [next(iter(places), None) for places in ranks]
    names = dict.fromkeys([*relevant[:RELEVANT], *(name for name in firsts if name is not None)])
    told = []
    for name in names:
        row = collection.documents.row(name)
        if row is not None:
            text = snippet(collection.documents.text(row), collection.all_queries[query], SIZE)
            at = [places.get(name) for places in ranks]
            told.append({"id": name, "text": text, "relevant": judged.get(name, 0) > 0, "ranks": at})
    return told


# Of an analysis: what it told of gains and losses.


def _of_analysis(analysis: Analysis) -> list[Query]:
    found = analysis.found
    domains = dict(zip(found["queries"]["query"], found["queries"]["domain"]))
    return [
        {
            "id": row["query"],
            "text": row["text"],
            "domain": domains.get(row["query"], ""),
            "scores": [round(row["ndcg_at_10"], 4), round(row["against"], 4)],
            "documents": _told_documents(row),
        }
        for row in [*found["gains"], *found["losses"]]
    ]


def _told_documents(row: Found) -> list[dict[str, Any]]:
    told: dict[str, dict[str, Any]] = {}
    for key, ranks in (
        ("relevant", [row["rank"], row["against_rank"]]),
        ("top", [1, None]),
        ("against_top", [None, 1]),
    ):
        document = row[key]
        if document is not None:
            before = told.setdefault(
                document["id"],
                {"id": document["id"], "text": document["text"], "relevant": key == "relevant", "ranks": [None, None]},
            )
            before["ranks"] = [was or now for was, now in zip(before["ranks"], ranks)]
    return list(told.values())
