"""Queries to look through: scores and ranks are those of the rankings, texts those of the collection."""

import pytest

from moe_retrieval import data
from moe_retrieval.errors import InputError
from moe_retrieval.evaluation.metrics import evaluate_run
from moe_retrieval.evaluation.results import write_results
from moe_retrieval.reporting.asked import asked
from moe_retrieval.reporting.part import Missing
from moe_retrieval.reporting.sources import Analysis, Sources, read_sources
from tests.moe_retrieval.corpora import write_beir
from tests.moe_retrieval.reporting.made import analysis, comparison, system, write

DOCUMENTS = {"a": ("Moss", "grows on stones"), "b": "fern and reed", "c": "oak"}
QUERIES = {"q1": "what is moss", "q2": "ferns", "q3": "oaks"}
JUDGED = {"q1": {"a": 1}, "q2": {"b": 1, "c": 2}, "q3": {"c": 1, "a": 0}}
GOOD = {"q1": {"a": 3.0, "b": 2.0}, "q2": {"c": 3.0, "b": 2.0}, "q3": {"c": 1.0}}
BAD = {"q1": {"b": 3.0, "a": 2.0}, "q2": {"a": 3.0}, "q3": {"c": 1.0}}


@pytest.fixture
def home(tmp_path):
    """A comparison of two systems, one of them with two seeds."""
    collection = data.load(write_beir(tmp_path / "plants", DOCUMENTS, QUERIES, {"test": JUDGED}))
    qrels = collection.qrels("test")
    for folder, run in {"dense-seed0": BAD, "moe-seed0": GOOD, "moe-seed1": BAD}.items():
        origin = {"dataset_fingerprint": collection.fingerprint, "split": "test", "setting": "full"}
        write_results(tmp_path / "runs" / folder, run, evaluate_run(qrels, run), origin)
    (tmp_path / "runs" / "dense-seed0" / "config.yaml").write_text(f"dataset: {tmp_path / 'plants'}\n")
    systems = {
        "BM25": system(0.1, seeds=()),
        "dense": system(0.2, folders=["dense-seed0"]),
        "moe": system(0.3, folders=["moe-seed0", "moe-seed1"]),
    }
    found = comparison(systems, collection="plants", fingerprint=collection.fingerprint)
    write(tmp_path / "runs", "comparison.json", found)
    return tmp_path


def queries_of(home, most=10, **where):
    part = asked(read_sources(home / "runs"), most, where.get("dataset"), where.get("data_dir"))
    (browser,) = part.items
    return browser.content, browser.note


def test_queries_with_scores_ranks_and_texts(home):
    content, note = queries_of(home)
    assert content["systems"] == ["dense", "moe"]
    by_id = {query["id"]: query for query in content["queries"]}
    qrels = data.load(home / "plants").qrels("test")
    bad, good = (evaluate_run(qrels, run).per_query["NDCG@10"] for run in (BAD, GOOD))
    assert by_id["q1"]["scores"] == pytest.approx([bad[0], (good[0] + bad[0]) / 2], abs=1e-4)
    assert by_id["q1"]["text"] == "what is moss"
    assert by_id["q1"]["documents"] == [
        {"id": "a", "text": "Moss grows on stones", "relevant": True, "ranks": [2, 1]},
        {"id": "b", "text": "fern and reed", "relevant": False, "ranks": [1, 2]},
    ]
    assert [document["id"] for document in by_id["q2"]["documents"]] == ["c", "b", "a"]  # what answers best, first
    assert by_id["q2"]["documents"][0]["ranks"] == [None, 1]
    assert [document["relevant"] for document in by_id["q3"]["documents"]] == [True]
    assert "3 of 3 queries" in note


def test_those_that_differ_most_stay(home):
    content, note = queries_of(home, most=1)
    assert [query["id"] for query in content["queries"]] == ["q2"]
    assert "1 of 3 queries" in note


def test_a_collection_that_is_not_what_it_was_is_not_used(home):
    write_beir(home / "plants", DOCUMENTS | {"d": "pine"}, QUERIES, {"test": JUDGED})
    told = asked(read_sources(home / "runs"), 10, None, None)
    assert isinstance(told, Missing)
    assert "is not what it was when it was compared on (another content hash)" in told.why


def test_a_collection_that_is_elsewhere_now(home):
    (home / "plants").rename(home / "moved")
    told = asked(read_sources(home / "runs"), 10, None, None)
    assert isinstance(told, Missing)
    assert told.why.startswith("no texts: ")
    assert len(queries_of(home, dataset=str(home / "moved"))[0]["queries"]) == 3


def test_rankings_that_are_damaged_are_left_out(home):
    (home / "runs" / "moe-seed0" / "run.trec").write_text("")
    assert queries_of(home)[0]["queries"][0]["documents"][0]["ranks"][1] != 1  # that of the other seed
    (home / "runs" / "moe-seed1" / "run.trec").unlink()
    assert queries_of(home)[0]["systems"] == ["dense"]
    (home / "runs" / "dense-seed0" / "run.trec").unlink()
    told = asked(read_sources(home / "runs"), 10, None, None)
    assert told.why == "no texts: no run.trec of plants is whole"


def test_no_texts_are_wanted(home):
    assert asked(read_sources(home / "runs"), 0, None, None).why == "--queries 0 leaves it out"


def test_of_an_analysis_its_gains_and_losses(tmp_path):
    told = {"id": "d1", "text": "moss"}
    gain = {
        "query": "q1", "text": "what", "ndcg_at_10": 1.0, "against": 0.25, "top": told, "relevant": told, "rank": 1,
        "against_rank": 3, "against_top": {"id": "d2", "text": "fern"},
    }  # fmt: skip
    loss = gain | {"query": "q2", "ndcg_at_10": 0.0, "relevant": None, "top": None}
    found = analysis(gains=[gain], losses=[loss], queries={"query": ["q1", "q2"], "domain": ["pond", "wood"]})
    part = asked(Sources(tmp_path, analyses=[Analysis("x", tmp_path, found)]), 10, None, None)
    first, second = part.items[0].content["queries"]
    assert (first["scores"], first["domain"]) == ([1.0, 0.25], "pond")
    assert first["documents"] == [
        {"id": "d1", "text": "moss", "relevant": True, "ranks": [1, 3]},
        {"id": "d2", "text": "fern", "relevant": False, "ranks": [None, 1]},
    ]
    assert [document["id"] for document in second["documents"]] == ["d2"]


def test_a_data_set_that_was_named_and_is_another_is_refused(home):
    write_beir(home / "others", DOCUMENTS | {"d": "pine"}, QUERIES, {"test": JUDGED})
    with pytest.raises(InputError, match="others is not what it was when it was compared on"):
        asked(read_sources(home / "runs"), 10, str(home / "others"), None)
