"""Gains and losses, with the texts that they are of."""

import numpy as np
import pytest

from moe_retrieval import data
from moe_retrieval.analysis.differences import MOST, describe_differences
from tests.moe_retrieval.corpora import write_beir

DOCUMENTS = {"a": ("Moss", "grows on stones"), "b": "fern and reed", "c": "oak"}
QUERIES = {"q1": "what is moss", "q2": "ferns", "q3": "oaks", "q4": "nothing"}
JUDGED = {"q1": {"a": 1}, "q2": {"b": 1, "c": 1}, "q3": {"c": 1}, "q4": {"gone": 1}}


@pytest.fixture
def collection(tmp_path):
    return data.load(write_beir(tmp_path, DOCUMENTS, QUERIES, {"test": JUDGED}))


def test_each_query_with_its_texts(collection):
    own = {"q1": {"a": 3.0, "b": 2.0}, "q2": {"a": 3.0, "c": 2.0, "b": 1.0}, "q3": {"c": 1.0}}
    other = {"q1": {"b": 3.0, "c": 2.0, "a": 1.0}, "q2": {"c": 2.0, "b": 1.0}, "q3": {"c": 1.0}, "q4": {"a": 1.0}}
    found = describe_differences(
        collection, "test", (own, other), (np.array([1, 0.5, 1, 0]), np.array([0.5, 1, 1, 0.1]))
    )
    (gain,) = found["gains"]
    assert (gain["query"], gain["text"], gain["ndcg_at_10"], gain["against"]) == ("q1", "what is moss", 1.0, 0.5)
    assert gain["difference"] == 0.5
    assert gain["top"] == gain["relevant"] == {"id": "a", "text": "Moss grows on stones"}
    assert gain["against_top"] == {"id": "b", "text": "fern and reed"}
    assert (gain["rank"], gain["against_rank"]) == (1, 3)
    second, first = found["losses"][1], found["losses"][0]
    assert (first["query"], second["query"]) == ("q2", "q4")
    assert (first["relevant"]["id"], first["rank"], first["against_rank"]) == ("c", 2, 1)  # where either has it highest
    assert (second["top"], second["relevant"], second["rank"], second["against_rank"]) == (None, None, None, None)


def test_the_largest_first_and_no_more_than_twenty(tmp_path):
    queries = {f"q{i}": f"moss {i}" for i in range(60)}
    judged = {name: {"a": 1} for name in queries}
    collection = data.load(write_beir(tmp_path, DOCUMENTS, queries, {"test": judged}))
    runs = {name: {"a": 1.0} for name in queries}, {}
    own, other = np.zeros(60), np.zeros(60)
    own[:30] = np.linspace(0.1, 1, 30)
    other[30:55] = np.linspace(1, 0.1, 25)
    found = describe_differences(collection, "test", runs, (own, other))
    assert [row["query"] for row in found["gains"]] == [f"q{i}" for i in range(29, 29 - MOST, -1)]
    assert [row["query"] for row in found["losses"]] == [f"q{i}" for i in range(30, 30 + MOST)]
