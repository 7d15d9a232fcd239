"""Pairs in memory are what the same lines in a file are."""

import json

import pytest

from moe_retrieval import data
from moe_retrieval.data import memory
from moe_retrieval.errors import InputError
from tests.moe_retrieval.corpora import write_lines


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_RETRIEVAL_CACHE", str(tmp_path / "cache"))


KINDS = {
    "pairs": ([(f"q{i}", f"p{i}") for i in range(40)], ("query", "positive")),
    "triplets": ([(f"q{i}", f"p{i}", f"n{i}") for i in range(40)], ("query", "positive", "negative")),
    "labelled": ([(f"q{i}", f"p{i}", i % 2) for i in range(40)], ("query", "document", "label")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_as_from_a_file(kind, tmp_path):
    pairs, names = KINDS[kind]
    records = [dict(zip(names, pair)) for pair in pairs]
    expected = data.load(write_lines(tmp_path / "file.jsonl", records))
    for given in (pairs, [list(pair) for pair in pairs], records, iter(pairs)):
        found = data.load(memory.keep(given))
        assert found.fingerprint == expected.fingerprint
        assert found.given_negatives == expected.given_negatives
        assert found.all_qrels == expected.all_qrels


def test_splits_are_taken_as_they_are():
    found = data.load(memory.keep({"train": [("a", "x"), ("b", "y")], "test": [("c", "x")]}))
    assert {split: sorted(found.queries(split).values()) for split in found.splits} == {
        "train": ["a", "b"],
        "test": ["c"],
    }
    found = data.load(memory.keep({"train": [(f"q{i}", f"p{i}") for i in range(100)]}))
    assert {split: len(found.qrels(split)) for split in found.splits} == {"train": 100}


def test_the_place_is_a_function_of_the_pairs():
    pairs, _ = KINDS["pairs"]
    assert memory.keep(pairs) == memory.keep(list(pairs)) != memory.keep(pairs[:-1])
    assert memory.keep(pairs) != memory.keep({"train": pairs})
    assert json.loads((memory.keep(pairs) / "corpus.jsonl").read_text().splitlines()[0])["text"] == "p0"


@pytest.mark.parametrize(
    "pairs, message",
    [
        ([], "pairs: holds no example"),
        ([("a", "b"), ("a",)], r"pairs\[1\]: expected \(query, positive\), .* or an object, got \('a',\)"),
        (["ab"], r"pairs\[0\]: expected \(query, positive\)"),
        ([("a", "b"), ("a", "b", "c")], r"pairs\[1\]: expected pairs as in the lines before, got triplets"),
        ([("a", "b", 2)], r'pairs\[0\]: expected a "label" of 0 or 1, got 2'),
        ([("a", b"b")], r'pairs\[0\]: expected "positive" to be text'),
        ([("a", "\ud800")], r"pairs\[0\]: half of a surrogate pair"),
        ({"training": []}, "pairs: expected some of train, dev, test, got 'training'"),
        ({"train": [("a", 1)]}, r"pairs\['train'\]\[0\]: expected"),
    ],
)
def test_what_is_no_pair_is_refused_with_its_place(pairs, message):
    with pytest.raises(InputError, match=message):
        memory.keep(pairs)
