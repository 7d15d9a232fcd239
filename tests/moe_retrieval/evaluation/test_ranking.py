"""Rankings: the settings, ties and limits, what is written, ranks."""

import json

import numpy as np
import pytest

from moe_retrieval import data
from moe_retrieval.errors import InputError
from moe_retrieval.evaluation.metrics import evaluate_run
from moe_retrieval.evaluation.ranking import bm25_run, model_run
from moe_retrieval.evaluation.results import evaluate_model
from moe_retrieval.evaluation.runs import ranking, read_run
from moe_retrieval.retrieval import encode
from tests.moe_retrieval.corpora import StandIn, plants, real, write_beir
from tests.moe_retrieval.ranks import run_ranks


@pytest.fixture
def collection(tmp_path):
    return data.load(plants(tmp_path / "plants"))


def test_the_run_is_the_ranking_of_all_documents(collection):
    model = StandIn()
    run = model_run(model, collection)
    queries = collection.queries("test")
    scores = model.encode_query(list(queries.values())) @ model.encode_document(list(collection.documents.texts)).T
    assert list(run) == list(queries)
    for place, found in enumerate(run.values()):
        assert len(found) == 60
        expected = np.array([scores[place, collection.documents.row(name)] for name in found])
        assert np.allclose(list(found.values()), expected, atol=1e-6)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_settings_are_not_mixed(collection):
    model = StandIn()
    full, pool = (model_run(model, collection, "test", setting) for setting in ("full", "gold-pool"))
    gold = {document for judged in collection.qrels("test").values() for document in judged}
    assert len(gold) == 10
    for query, found in pool.items():
        assert set(found) == gold
        assert [name for name, _ in ranking(found)] == [name for name, _ in ranking(full[query]) if name in gold]
    assert set(model_run(model, collection, "train")) == set(collection.queries("train"))
    assert evaluate_model(model, collection, "train") != evaluate_model(model, collection, "test")
    with pytest.raises(InputError, match="setting must be one of full, gold-pool; got 'half'"):
        model_run(model, collection, "test", "half")


def test_no_more_than_a_thousand_and_not_the_query_itself(tmp_path):
    documents = {f"d{i}": f"moss n{i}" for i in range(1100)} | {"q": "moss fern", "p": "fern"}
    folder = write_beir(tmp_path, documents, {"q": "moss fern", "p": "fern"}, {"test": {"q": {"d1": 1}, "p": {"p": 1}}})
    collection = data.load(folder)
    for run in (model_run(StandIn(), collection), bm25_run(collection)):
        assert len(run["q"]) == 1000
        assert "q" not in run["q"]
        assert next(iter(run["p"])) == "p"


def test_bm25_prefers_rare_words_and_leaves_out_what_shares_none(tmp_path):
    documents = {"a": "the moss", "b": "moss moss fern", "c": "oak", "d": "ferns and moss", "e": "moss"}
    collection = data.load(
        write_beir(
            tmp_path, documents, {"q": "Fern of the moss", "p": "of the"}, {"test": {"q": {"d": 1}, "p": {"a": 1}}}
        )
    )
    run = bm25_run(collection)
    assert [name for name, _ in ranking(run["q"])][:2] == ["d", "b"]
    assert set(run["q"]) == {"a", "b", "d", "e"}
    assert run["p"] == {}
    assert evaluate_run(collection.qrels("test"), run).means["MRR@1"] == 0.5
    assert set(bm25_run(collection, "test", "gold-pool")["q"]) == {"a", "d"}


def test_what_is_written(collection, tmp_path):
    output = tmp_path / "out"
    means = evaluate_model(StandIn(), collection, "test", output_dir=output)
    written = json.loads((output / "metrics.json").read_text())
    assert {name: value for name, value in written.items() if name != "run"} == means
    assert written["run"]["dataset_fingerprint"] == collection.fingerprint
    assert written["run"]["model"] == "stand-in-64-0"
    assert written["run"]["documents"] == 60
    assert evaluate_run(collection.qrels("test"), read_run(output / "run.trec")).means == means
    again = StandIn()
    evaluate_model(again, collection, "train", output_dir=output)
    assert len(again.batches) == 1  # the queries: documents are on disk


def on_a_rank(folder):
    encode.WINDOW = 7
    collection = data.load(f"{folder}/../plants")
    return evaluate_model(StandIn(), collection, "test", output_dir=f"{folder}/out")


@pytest.mark.slow
def test_ranks_give_the_same_ranking(collection, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "WINDOW", 7)
    (alone,) = run_ranks(1, on_a_rank, tmp_path / "1")
    for world in (2, 4):
        assert run_ranks(world, on_a_rank, tmp_path / str(world)) == [alone] * world
    runs = [(tmp_path / str(world) / "out" / "run.trec").read_text() for world in (1, 2, 4)]
    assert runs[0] == runs[1] == runs[2]


def test_bm25_on_scifact():
    collection = data.load(real("scifact"))
    means = evaluate_run(collection.qrels("test"), bm25_run(collection)).means
    assert 0.66 < means["NDCG@10"] < 0.69
