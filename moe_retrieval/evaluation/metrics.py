"""What a ranking is worth: trec_eval's measures.

Against BEIR's own evaluator: its MRR breaks ties by the order of insertion, and its other means leave out queries
that have no run; here such a query counts 0.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moe_retrieval.data.collection import Qrels
from moe_retrieval.errors import InputError
from moe_retrieval.evaluation.runs import Run

CUTS = (1, 3, 5, 10, 100, 1000)
TREC_NAMES = {"NDCG": "ndcg_cut", "MAP": "map_cut", "Recall": "recall", "P": "P"}


class Measures(NamedTuple):
    means: dict[str, float]
    """NDCG@10 and the like -> mean over the queries of the qrels"""
    per_query: dict[str, np.ndarray]
    """The same names -> the value of each query, in the order of the qrels"""


def mean_of(runs: Sequence[Measures]) -> Measures:
    """Of several models on the same queries, each query's own mean: those of one setting with several seeds, say."""
    per_query = {name: np.mean([run.per_query[name] for run in runs], axis=0) for name in runs[0].per_query}
    return Measures({name: float(np.mean(values)) for name, values in per_query.items()}, per_query)


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
