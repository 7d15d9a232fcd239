"""Training pairs: texts and ids that belong together, and negatives that are none of the answers."""

import numpy as np
import pytest

from moe_retrieval import data
from moe_retrieval.errors import InputError
from moe_retrieval.training.negatives import HardNegatives, training_pairs
from moe_retrieval.training.pairs import Example
from tests.moe_retrieval.corpora import StandIn, plants, real, write_beir, write_lines

DOCUMENTS = {
    "a": "red red apple",
    "b": "red apple pie",
    "c": "red wine",
    "d": "green pear",
    "e": "blue sky",
    "f": "red apple",
}


@pytest.fixture
def fruit(tmp_path):
    folder = write_beir(
        tmp_path, DOCUMENTS, {"q": "red apple", "p": "green"}, {"train": {"q": {"a": 1, "f": 2}, "p": {"d": 1}}}
    )
    return data.load(folder)


def test_in_batch(fruit):
    pairs = training_pairs(fruit)
    assert len(pairs) == 3
    assert pairs[0] == Example("red apple", "a", "red red apple", (), (), "q", 1)
    assert [(example.query_id, example.positive_id) for example in pairs] == [("q", "a"), ("q", "f"), ("p", "d")]
    assert pairs[-1] == pairs[2]
    assert pairs[0:2] == [pairs[0], pairs[1]]


def test_bm25_takes_the_best_that_is_not_an_answer(fruit):
    pairs = training_pairs(fruit, HardNegatives("bm25", 2))
    assert [example.negative_ids for example in pairs][:2] == [("b", "c")] * 2
    assert pairs[0].negative_texts == ("red apple pie", "red wine")


def test_random_documents_fill_up(fruit, caplog):
    pairs = training_pairs(fruit, HardNegatives("bm25", 4))
    for example in pairs:
        assert len(set(example.negative_ids)) == 4
        assert not set(example.negative_ids) & set(fruit.qrels("train")[example.query_id])
    assert "8 of 12 hard negatives are random documents" in caplog.text
    assert list(pairs) == list(training_pairs(fruit, HardNegatives("bm25", 4)))
    assert (
        len(
            {
                tuple(example.negative_ids for example in training_pairs(fruit, HardNegatives("bm25", 4), seed=i))
                for i in range(9)
            }
        )
        > 1
    )
    with pytest.raises(InputError, match="6 documents are too few for 5 negatives of query 'q'"):
        training_pairs(fruit, HardNegatives("bm25", 5))


@pytest.mark.parametrize("margin", [-2.0, 0.0, 0.1, 0.3])
def test_mined_keeps_its_distance(tmp_path, margin):
    collection = data.load(plants(tmp_path / "plants"))
    model = StandIn()
    pairs = training_pairs(collection, HardNegatives("mined", 3, margin=margin), model=model)
    scores = (
        model.encode_query([example.query_text for example in pairs])
        @ model.encode_document(list(collection.documents.texts)).T
    )
    row = collection.documents.row
    for place, example in enumerate(pairs):
        own = scores[place, row(example.positive_id)]
        allowed = [i for i in np.argsort(-scores[place]) if scores[place, i] <= own - margin]
        allowed = [i for i in allowed if i != row(example.positive_id)]
        mined = [row(name) for name in example.negative_ids]
        assert mined[: len(allowed)] == allowed[:3]


def test_given_negatives(tmp_path):
    lines = [
        {"query": "Q", "positives": ["P", "R"], "negatives": ["N", "M", "L"]},
        {"query": "S", "positives": ["T"], "negatives": ["N", "K"]},
    ]
    collection = data.load(write_lines(tmp_path / "train.jsonl", lines).parent)
    assert [example.negative_texts for example in training_pairs(collection)] == [("N", "M")] * 2 + [("N", "K")]
    assert [example.negative_texts for example in training_pairs(collection, HardNegatives(number=1))] == [("N",)] * 3
    assert training_pairs(collection, HardNegatives(number=3))[0].negative_texts == ("N", "M", "L")


def test_labelled_pairs(tmp_path):
    lines = [{"query": "Q", "document": "P", "label": 1}, {"query": "Q", "document": "N", "label": 0}]
    collection = data.load(write_lines(tmp_path / "train.jsonl", lines).parent)
    assert [(example.positive_text, example.label) for example in training_pairs(collection)] == [("P", 1)]
    both = training_pairs(collection, labelled=True)
    assert [(example.positive_text, example.label) for example in both] == [("P", 1), ("N", 0)]


def test_judgements_of_unknown_documents_are_no_pairs(tmp_path):
    folder = write_beir(
        tmp_path, {"a": "x"}, {"q": "x", "p": "y"}, {"train": {"q": {"a": 1, "gone": 1}, "p": {"gone": 1}}}
    )
    assert [example.positive_id for example in training_pairs(data.load(folder))] == ["a"]


def test_bad_arguments(fruit):
    with pytest.raises(InputError, match="negatives must be one of in-batch, bm25, mined; got 'hard'"):
        HardNegatives("hard")
    with pytest.raises(InputError, match="num_negatives must be at least 1 with bm25 negatives, got 0"):
        HardNegatives("bm25")
    with pytest.raises(InputError, match="mined negatives need a model"):
        training_pairs(fruit, HardNegatives("mined", 1))
    with pytest.raises(InputError, match="names no negatives"):
        training_pairs(fruit, HardNegatives(number=1))


def test_scifact():
    collection = data.load(real("scifact"))
    pairs = training_pairs(collection, HardNegatives("bm25", 1))
    assert len(pairs) == 919
    relevant = collection.qrels("train")
    assert not any(set(example.negative_ids) & set(relevant[example.query_id]) for example in pairs)
