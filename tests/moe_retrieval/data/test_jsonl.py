"""The four kinds of JSON lines, each as a collection; bad lines named by file and number."""

import pytest

from moe_retrieval import data
from moe_retrieval.data.jsonl import hash_split, text_id
from moe_retrieval.errors import InputError
from tests.moe_retrieval.corpora import write_lines


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_RETRIEVAL_CACHE", str(tmp_path / "cache"))


KINDS = {
    "pairs": {"query": "Q", "positive": "P"},
    "pairs by other names": {"anchor": "Q", "answer": "P"},
    "labelled": {"query": "Q", "document": "P", "label": 1},
    "labelled by other names": {"sentence1": "Q", "sentence2": "P", "label": 1.0},
    "triplets": {"query": "Q", "positive": "P", "negative": "N"},
    "lists": {"query": "Q", "positives": ["P"], "negatives": ["N", "M", "N"]},
    "lists by other names": {"query": "Q", "pos": ["P"], "neg": ["N", "M", "N"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(tmp_path, kind):
    collection = data.load(write_lines(tmp_path / "train.jsonl", [KINDS[kind]]).parent)
    assert collection.splits == ("train",)
    assert collection.queries("train") == {text_id("Q"): "Q"}
    assert collection.qrels("train") == {text_id("Q"): {text_id("P"): 1}}
    negatives = {"lists": ["N", "M"], "triplets": ["N"]}.get(kind.split()[0], [])
    assert collection.given_negatives == ({text_id("Q"): [text_id(text) for text in negatives]} if negatives else {})
    assert sorted(collection.documents) == sorted((text_id(text), text) for text in ["P", *negatives])


@pytest.mark.parametrize(
    "array, line",
    [
        (["Q", "P"], KINDS["pairs"]),
        (["Q", "P", "N"], KINDS["triplets"]),
        (["Q", "P", 1], KINDS["labelled"]),
        ({"set": ["Q", "P", "R"]}, {"query": "Q", "positives": ["P", "R"]}),
    ],
)
def test_what_stands_for_an_object(array, line, tmp_path):
    found, expected = (
        data.load(write_lines(tmp_path / name / "train.jsonl", [each]).parent)
        for name, each in (("a", array), ("b", line))
    )
    assert found.fingerprint == expected.fingerprint
    assert found.given_negatives == expected.given_negatives


def test_labels_are_judgements(tmp_path):
    lines = [{"query": "Q", "document": "P", "label": 1}, {"query": "Q", "document": "N", "label": 0}]
    collection = data.load(write_lines(tmp_path / "train.jsonl", lines).parent)
    assert collection.qrels("train") == {text_id("Q"): {text_id("P"): 1, text_id("N"): 0}}


def test_one_file_is_split_by_query(tmp_path):
    lines = [{"query": f"query {i // 2}", "positive": f"document {i}"} for i in range(800)]
    collection = data.load(write_lines(tmp_path / "pairs.jsonl", lines))
    sizes = {split: len(collection.qrels(split)) for split in collection.splits}
    assert sum(sizes.values()) == 400
    assert 330 < sizes["train"] < 380
    assert min(sizes.values()) > 5
    for split in collection.splits:
        for query_id, text in collection.queries(split).items():
            assert hash_split(text) == split
            assert len(collection.qrels(split)[query_id]) == 2


def test_files_of_a_folder_are_its_splits(tmp_path):
    for split in ("train", "dev"):
        write_lines(tmp_path / f"{split}.jsonl", [{"query": f"{split} query", "positive": "the same text"}])
    collection = data.load(tmp_path)
    assert collection.splits == ("dev", "train")
    assert list(collection.documents) == [(text_id("the same text"), "the same text")]
    assert list(collection.queries("dev").values()) == ["dev query"]


def test_a_folder_of_training_data_alone_is_all_trained_on(tmp_path):
    lines = [{"query": f"query {i}", "positive": f"document {i}"} for i in range(100)]
    collection = data.load(write_lines(tmp_path / "train.jsonl", lines).parent)
    assert {split: len(collection.qrels(split)) for split in collection.splits} == {"train": 100}


def test_a_changed_file_is_read_again(tmp_path, caplog):
    path = write_lines(tmp_path / "train.jsonl", [{"query": "Q", "positive": "P"}] * 2)
    first = data.load(tmp_path)
    assert "1 pairs come twice" in caplog.text
    write_lines(path, [{"query": "Q", "positive": "another"}])
    assert data.load(tmp_path).fingerprint != first.fingerprint


BAD = [
    ({"positive": "P"}, 'train.jsonl:2: expected a "query" that is a string; this line has positive'),
    ({"query": "Q"}, 'train.jsonl:2: expected a "positive", "positives" or "document"; this line has query'),
    ({"query": "Q", "positive": 3}, 'train.jsonl:2: expected "positive" to be text, got 3'),
    ({"query": "Q", "positives": []}, "train.jsonl:2: expected at least one positive, got none"),
    ({"query": "Q", "positives": ["P"], "negatives": [1]}, 'train.jsonl:2: expected "negatives" to be text'),
    (
        {"query": "Q", "positive": "P", "negative": "N"},
        "train.jsonl:2: expected pairs as in the lines before, got trip",
    ),
    ({"query": "Q", "document": "P", "label": 0.5}, 'train.jsonl:2: expected a "label" of 0 or 1, got 0.5'),
    ({"query": "Q", "document": "P", "label": None}, 'train.jsonl:2: expected a "label" of 0 or 1, got None'),
    ({"query": "Q", "document": "P", "labels": 0}, 'train.jsonl:2: unknown field "labels"; nearest is "label"'),
    ({"query": "Q", "postive": "P"}, 'train.jsonl:2: unknown field "postive"; nearest is "positive"'),
    (
        {"sentence1": "A", "sentence2": "B", "score": 0.2},
        'train.jsonl:2: unknown field "score"; expected some of query, anchor, sentence1, positive, .*, label$',
    ),
    ({"query": "Q", "positives": ["P"], "label": 0}, 'train.jsonl:2: a line with "positives" has no "label"'),
    (
        {"query": "Q", "document": "P", "label": 0, "negative": "N"},
        'train.jsonl:2: a line with "document" and "label" has no "negative"',
    ),
    ({"query": "Q", "pos": ["P"], "negative": "N"}, 'train.jsonl:2: a line with "pos" has no "negative"'),
    (["Q"], r"train.jsonl:2: expected \(query, positive\), .* or an object, got \['Q'\]"),
    ("text", r"train.jsonl:2: expected \(query, positive\), .* or an object, got 'text'"),
    ({"set": ["Q"]}, r"train.jsonl:2: expected a \"set\" of two texts or more, got \['Q'\]"),
    ({"query": "Q", "anchor": "A", "positive": "P"}, 'train.jsonl:2: "query" and "anchor" are one field by two names'),
]


@pytest.mark.parametrize("line, message", BAD, ids=[message[13:45] for _, message in BAD])
def test_a_bad_line_is_named(tmp_path, line, message):
    write_lines(tmp_path / "train.jsonl", [{"query": "Q", "positive": "P"}, line])
    with pytest.raises(InputError, match=message):
        data.load(tmp_path)
    assert not list((tmp_path / "cache" / "jsonl").iterdir())


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.jsonl: no such file, or a folder without a train.jsonl"):
        data.load(tmp_path / "nowhere.jsonl")
    (tmp_path / "pairs.jsonl").touch()
    with pytest.raises(InputError, match=r"pairs.jsonl: holds no example"):
        data.load(tmp_path / "pairs.jsonl")
