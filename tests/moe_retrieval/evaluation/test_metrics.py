"""Measures against pytrec_eval itself, against BEIR's evaluator, and against a naive count."""

import math

import numpy as np
import pytest
import pytrec_eval
from beir.retrieval.evaluation import EvaluateRetrieval
from hypothesis import given
from hypothesis import strategies as st

from moe_retrieval.errors import InputError
from moe_retrieval.evaluation.metrics import CUTS, evaluate_run
from moe_retrieval.evaluation.runs import ranking, read_run, write_run


def some_run(seed=0, queries=30, documents=1500, ties=False):
    rng = np.random.default_rng(seed)
    qrels, run = {}, {}
    for query in range(queries):
        judged = rng.choice(documents, 8, replace=False)
        qrels[f"q{query}"] = {f"d{document}": int(rng.integers(0, 3)) for document in judged}
        found = rng.choice(documents, 1200, replace=False)
        scores = rng.integers(0, 40, 1200) / 8 if ties else rng.standard_normal(1200)
        run[f"q{query}"] = {f"d{document}": float(score) for document, score in zip(found, scores)}
        for document in judged[:2]:
            run[f"q{query}"][f"d{document}"] = 4.0 if ties else float(rng.uniform(2, 4))
    return qrels, run


@pytest.mark.parametrize("ties", [False, True])
def test_equal_to_pytrec_eval_to_the_last_digit(ties):
    qrels, run = some_run(ties=ties)
    measures = evaluate_run(qrels, run)
    names = {"NDCG": "ndcg_cut", "MAP": "map_cut", "Recall": "recall", "P": "P"}
    for cut in CUTS:
        cut_run = {query: dict(ranking(scores)[:cut]) for query, scores in run.items()}
        for ours, theirs in names.items():
            found = pytrec_eval.RelevanceEvaluator(qrels, {f"{theirs}.{cut}"}).evaluate(run)
            values = [found[query][f"{theirs}_{cut}"] for query in qrels]
            assert measures.per_query[f"{ours}@{cut}"].tolist() == values
            assert measures.means[f"{ours}@{cut}"] == pytrec_eval.compute_aggregated_measure(theirs, values)
        found = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(cut_run)
        assert measures.per_query[f"MRR@{cut}"].tolist() == [found[query]["recip_rank"] for query in qrels]
    assert len(measures.means) == 5 * len(CUTS)
    assert 0 <= measures.means["MRR@1"] < measures.means["MRR@100"] < 1


def test_equal_to_beir_where_it_is_right():
    qrels, run = some_run()
    ndcg, _map, recall, precision = EvaluateRetrieval.evaluate(qrels, run, list(CUTS))
    mrr = EvaluateRetrieval.evaluate_custom(qrels, run, list(CUTS), "mrr")
    ours = evaluate_run(qrels, run).means
    for name, value in {**ndcg, **_map, **recall, **precision, **mrr}.items():
        assert ours[name] == pytest.approx(value, abs=5.1e-6), name


def test_where_beir_is_not_right():
    qrels = {"q": {"a": 1}, "p": {"a": 1}}
    tied = {"q": {"a": 1.0, "b": 1.0}, "p": {"a": 1.0}}
    assert EvaluateRetrieval.evaluate_custom(qrels, tied, [1], "mrr")["MRR@1"] == 1.0
    assert evaluate_run(qrels, tied).means["MRR@1"] == 0.5
    assert EvaluateRetrieval.evaluate(qrels, {"p": {"a": 1.0}}, [1])[0]["NDCG@1"] == 1.0
    assert evaluate_run(qrels, {"p": {"a": 1.0}}).means["NDCG@1"] == 0.5


def naive(qrels, run):
    """NDCG@3 and MRR@3, from their definitions."""
    ndcgs, mrrs = [], []
    for query, judged in qrels.items():
        order = sorted(run.get(query, {}), key=lambda name: (run[query][name], name), reverse=True)[:3]
        gains = [judged.get(name, 0) for name in order]
        best = sorted((score for score in judged.values() if score > 0), reverse=True)[:3]
        ideal = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(best))
        ndcgs.append(sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains)) / ideal if ideal else 0.0)
        mrrs.append(next((1 / (rank + 1) for rank, gain in enumerate(gains) if gain > 0), 0.0))
    return np.mean(ndcgs), np.mean(mrrs)


names = st.sampled_from(["a", "b", "ab", "é", "zz", "10", "9"])


@given(
    st.dictionaries(st.sampled_from("qrs"), st.dictionaries(names, st.integers(0, 2), min_size=1), min_size=1),
    st.dictionaries(st.sampled_from("qrst"), st.dictionaries(names, st.sampled_from([-1.0, 0.0, 0.5, 2.0]))),
)
def test_against_the_definitions(qrels, run):
    means = evaluate_run(qrels, run).means
    assert (means["NDCG@3"], means["MRR@3"]) == pytest.approx(naive(qrels, run))


def test_ties_go_by_id_downwards_and_in_single_precision():
    scores = {"a": 1.0, "c": 1.0 + 1e-9, "b": 1.0, "d": 0.5, "e": 2.0}
    assert [name for name, _ in ranking(scores)] == ["e", "c", "b", "a", "d"]
    for relevant, rank in (("c", 2), ("b", 3), ("a", 4)):
        assert evaluate_run({"q": {relevant: 1}}, {"q": scores}).per_query["MRR@10"].tolist() == [1 / rank]


def test_an_id_with_spaces_is_one_column_of_a_run_file(tmp_path):
    run = {"first query": {"a b c": 2.0, "d": 1.0}}
    write_run(tmp_path / "run.trec", run)
    lines = (tmp_path / "run.trec").read_text().splitlines()
    assert [len(line.split()) for line in lines] == [6, 6]
    assert read_run(tmp_path / "run.trec") == run


def test_a_run_survives_its_file(tmp_path):
    qrels, run = some_run(3)
    run = {query: {name: float(np.float32(score)) for name, score in scores.items()} for query, scores in run.items()}
    write_run(tmp_path / "run.trec", run)
    again = read_run(tmp_path / "run.trec")
    assert {query: ranking(scores) for query, scores in again.items()} == {q: ranking(s) for q, s in run.items()}
    with open(tmp_path / "run.trec") as file:
        assert pytrec_eval.parse_run(file).keys() == run.keys()
    columns = (tmp_path / "run.trec").read_text().splitlines()[0].split()
    assert columns[1] == "Q0"
    assert columns[3] == "1"
    assert evaluate_run(qrels, again).means == evaluate_run(qrels, run).means


@pytest.mark.parametrize(
    "line, message",
    [
        ("q Q0 d 1 0.5", "run.trec:2: expected query Q0 document rank score tag, got 5 columns"),
        ("q Q0 d 1 high tag", "run.trec:2: expected a score that is a finite number, got 'high'"),
        ("q Q0 c 1 0.5 tag", "run.trec:2: the document 'c' comes twice for query 'q'"),
    ],
)
def test_bad_runs(tmp_path, line, message):
    (tmp_path / "run.trec").write_text(f"q Q0 c 1 0.5 tag\n{line}\n")
    with pytest.raises(InputError, match=message):
        read_run(tmp_path / "run.trec")
    with pytest.raises(InputError, match="no query"):
        evaluate_run({}, {})
