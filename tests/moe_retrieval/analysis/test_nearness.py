"""Queries against answers: cosines of the right pairs, in the order of their domains."""

import numpy as np
import pytest

from moe_retrieval import data
from moe_retrieval.analysis import nearness
from moe_retrieval.analysis.domains import find_domains
from moe_retrieval.analysis.nearness import describe_nearness
from tests.moe_retrieval.corpora import write_beir
from tests.moe_retrieval.gardens import gardens


def embeddings(*counts):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((count, 5)).astype(np.float32) * 3 for count in counts]


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("candidates", [range(48), list(range(0, 48, 3))], ids=["full", "gold-pool"])
def test_each_cell_is_the_cosine_of_a_query_and_an_answer(tmp_path, monkeypatch, candidates):
    monkeypatch.setattr(nearness, "MOST", 7)
    collection = gardens(tmp_path)
    queries, documents = embeddings(16, len(candidates))
    domains = find_domains(collection, "test", candidates)
    found = describe_nearness(collection, "test", candidates, [queries, documents], domains)
    asked = [int(query["id"][1:]) for query in found["queries"]]
    assert len(asked) == len(set(asked)) == 7
    assert {0, 15} <= set(asked)
    assert [document["id"] for document in found["documents"]] == [f"d{3 * number}" for number in asked]
    assert [query["domain"] for query in found["queries"]] == [document["domain"] for document in found["documents"]]
    places = [domains.names.index(query["domain"]) for query in found["queries"]]
    assert places == sorted(places)
    for row, number in zip(found["cosines"], asked):
        expected = [cosine(queries[number], documents[list(candidates).index(3 * other)]) for other in asked]
        assert row == pytest.approx(expected, abs=1e-4)


def test_the_best_answer_is_taken_and_queries_without_one_are_left_out(tmp_path):
    judged = {"q1": {"a": 1, "b": 2}, "q2": {"gone": 1}, "q3": {"a": 0}, "q4": {"gone": 2, "a": 1}}
    texts = {"a": "moss", "b": "fern"}
    collection = data.load(write_beir(tmp_path, texts, {name: f"ask {name}" for name in judged}, {"test": judged}))
    domains = find_domains(collection, "test", range(2))
    found = describe_nearness(collection, "test", range(2), embeddings(4, 2), domains)
    assert [query["id"] for query in found["queries"]] == ["q1", "q4"]
    assert [document["id"] for document in found["documents"]] == ["b", "a"]
    nothing = data.load(write_beir(tmp_path / "none", texts, {"q2": "x"}, {"test": {"q2": {"gone": 1}}}))
    domains = find_domains(nothing, "test", range(2))
    found = describe_nearness(nothing, "test", range(2), embeddings(1, 2), domains)
    assert found == {"queries": [], "documents": [], "cosines": []}
