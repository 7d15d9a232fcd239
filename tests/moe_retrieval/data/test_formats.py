"""Every format that is read has an example in examples/data, which docs/pairs.md names and which is read."""

import json
import re
from pathlib import Path

import pytest

from moe_retrieval import data
from moe_retrieval.data.records import Documents
from moe_retrieval.data.sentences import Labelled, Pair, read_labelled, read_pairs
from moe_retrieval.search import Question, read_questions

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples" / "data"
QUERIES = {"how do I sort a list in place", "number of items in a dictionary"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_RETRIEVAL_CACHE", str(tmp_path / "cache"))


def test_the_page_names_every_example_and_no_other():
    named = set(re.findall(r"examples/data/([\w/]+\.jsonl)", (ROOT / "docs" / "pairs.md").read_text()))
    assert named == {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.jsonl")}


@pytest.mark.parametrize("name, negatives", [("pairs", 0), ("labelled", 0), ("triplets", 2), ("lists", 3)])
def test_examples_of_training_data(name, negatives):
    collection = data.load(EXAMPLES / f"{name}.jsonl")
    assert set(collection.all_queries.values()) <= QUERIES
    assert sum(map(len, collection.given_negatives.values())) == negatives
    labels = [
        label for qrels in collection.all_qrels.values() for judged in qrels.values() for label in judged.values()
    ]
    assert sorted(labels) == ([0, 1] if name == "labelled" else [1, 1])


def test_examples_of_texts():
    documents = Documents(EXAMPLES / "corpus.jsonl")
    assert documents[0] == ("sort", "list.sort Sorts the items of the list in place.")
    assert read_questions(str(EXAMPLES / "questions.jsonl")) == [
        Question("how do I sort a list in place", "1"), Question("number of items in a dictionary"),
    ]  # fmt: skip
    assert read_pairs(str(EXAMPLES / "sentences.jsonl"))[0] == Pair(
        "A man plays the guitar.", "Someone plays an instrument.", 4.2
    )
    assert read_labelled(str(EXAMPLES / "questions_by_class"), "test") == [Labelled("Who discovered radium?", "person")]


def test_the_lines_of_the_page_are_those_of_the_examples():
    """A line in a table of the page: with as many fields, of the same names."""
    table = re.findall(
        r"^\| `(\{.*?\})` \|.*?examples/data/([\w/]+\.jsonl)", (ROOT / "docs" / "pairs.md").read_text(), re.MULTILINE
    )
    assert len(table) >= 7
    for line, name in table:
        fields = set(re.findall(r'"(\w+)":', line))
        assert all(set(json.loads(example)) <= fields for example in (EXAMPLES / name).read_text().splitlines())
