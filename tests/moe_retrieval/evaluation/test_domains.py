"""Which queries are of which domain."""

import json

import pytest

from moe_retrieval import data
from moe_retrieval.evaluation.domains import domains_of
from tests.moe_retrieval.corpora import write_beir, write_lines

DOMAINS = {"a": "torch", "b": "torch", "c": "numpy", "d": None, "e": 3, "f": "scipy"}


def collection(folder, judged, domains=DOMAINS):
    queries = {query: f"what is {query}" for query in judged}
    write_beir(folder, {name: f"text of {name}" for name in domains}, queries, {"test": judged})
    lines = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    write_lines(folder / "corpus.jsonl", [line | {"metadata": {"domain": domains[line["_id"]]}} for line in lines])
    return data.load(str(folder))


def test_a_query_is_of_the_domain_of_its_first_answer_and_the_largest_domain_comes_first(tmp_path):
    judged = {
        "q1": {"c": 1},
        "q2": {"f": 0, "a": 1, "c": 1},  # what is judged to be no answer says nothing
        "q3": {"b": 2},
        "q4": {"d": 1},
        "q5": {"e": 1},
        "q6": {"elsewhere": 1, "a": 1},
    }
    found = domains_of(collection(tmp_path / "mixed", judged), "test")
    assert [(name, places.tolist()) for name, places in found.items()] == [("torch", [1, 2, 5]), ("numpy", [0])]


@pytest.mark.parametrize("domains", [{"a": "torch", "b": "torch"}, {"a": None, "b": None}, {"a": "torch", "b": ""}])
def test_one_domain_is_no_distinction(tmp_path, domains):
    assert domains_of(collection(tmp_path / "one", {"q": {"a": 1}, "r": {"b": 1}}, domains), "test") == {}


def test_metadata_may_be_anything(tmp_path):
    folder = tmp_path / "odd"
    write_beir(folder, {"a": "one", "b": "two"}, {"q": "which"}, {"test": {"q": {"a": 1}}})
    write_lines(folder / "corpus.jsonl", [{"_id": "a", "text": "one", "metadata": "x"}, {"_id": "b", "text": "two"}])
    assert domains_of(data.load(str(folder)), "test") == {}
