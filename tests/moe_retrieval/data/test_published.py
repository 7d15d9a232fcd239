"""Pairs of sentences in the files that others publish."""

import gzip
import json

import pytest

from moe_retrieval import data
from moe_retrieval.errors import InputError
from tests.moe_retrieval.corpora import write_lines


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_RETRIEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MOE_RETRIEVAL_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def texts(collection, split):
    """query -> document -> relevance, by their texts"""
    of_document = dict(collection.documents)
    return {
        collection.all_queries[query]: {of_document[name]: score for name, score in judged.items()}
        for query, judged in collection.qrels(split).items()
    }


def inference(label, first, second):
    """A line of SNLI, with its other fields."""
    parses = {"sentence1_parse": "(ROOT)", "sentence2_parse": "(ROOT)", "pairID": "1.jpg#0", "captionID": "1.jpg"}
    return {"annotator_labels": [label], "gold_label": label, "sentence1": first, "sentence2": second, **parses}


@pytest.mark.parametrize(
    "name, place, files",
    [
        ("snli", "snli_1.0", {"train": "snli_1.0_train", "dev": "snli_1.0_dev"}),
        ("mnli", "mnli", {"train": "multinli_1.0_train", "dev": "multinli_1.0_dev_matched"}),
    ],
)
def test_inference(name, place, files, folder):
    lines = [
        inference("entailment", "A dog runs.", "An animal moves."),
        inference("neutral", "A dog runs.", "It is hungry."),
        inference("contradiction", "A dog runs.", "A cat sleeps."),
        inference("-", "A dog runs.", "Nobody knows."),
        inference("entailment", "Two men talk.", "People talk."),
    ]
    write_lines(folder / place / f"{files['train']}.jsonl", lines)
    write_lines(folder / place / f"{files['dev']}.jsonl", lines[:3])
    collection = data.load(name)
    assert collection.splits == ("dev", "train")
    assert texts(collection, "train") == {"A dog runs.": {"An animal moves.": 1}}
    (negatives,) = collection.given_negatives.values()
    assert [dict(collection.documents)[each] for each in negatives] == ["A cat sleeps."]


def test_scores_of_similarity(folder):
    rows = [("4.200", "a", "A"), ("2.900", "b", "B"), ("3.000", "c", "C"), ("3.999", "d", "D"), ("4.000", "e", "E")]
    (folder / "stsb").mkdir(parents=True)
    for split in ("train", "test"):
        lines = ["\t".join(["main-captions", "MSRvid", "2012test", "0001", *row]) for row in rows]
        (folder / "stsb" / f"sts-{split}.csv").write_text("\n".join(lines) + "\n")
    collection = data.load("stsb")
    assert collection.splits == ("test", "train")
    assert texts(collection, "train") == {"a": {"A": 1}, "b": {"B": 0}, "e": {"E": 1}}


def test_duplicate_questions(folder):
    (folder / "quora-pairs").mkdir(parents=True)
    lines = ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"]
    lines += [f'{i}\t1\t2\tHow is {i}?\t"What is\n{i} ""like""?"\t{i % 2}' for i in range(200)]
    path = folder / "quora-pairs" / "quora_duplicate_questions.tsv"
    path.write_text("\n".join(lines) + "\n")
    collection = data.load("quora-pairs")
    found = {query: judged for split in collection.splits for query, judged in texts(collection, split).items()}
    assert found == {f"How is {i}?": {f'What is\n{i} "like"?': i % 2} for i in range(200)}
    assert set(collection.splits) == {"train", "dev", "test"}
    path.write_text("\n".join([lines[0], "0\t1\t2\tHow?\tWhat?"]) + "\n")
    with pytest.raises(InputError, match=r"questions.tsv:2: expected question1, question2 and is_duplicate of 0 or 1"):
        data.load("quora-pairs")


@pytest.mark.parametrize(
    "line, told",
    [
        (b"0\t1\t2\tHow?\tWh\xffat?\t1\n", r"questions.tsv:2: not UTF-8 \(byte 0xff in column 14\)"),
        (b"0\t1\t2\tHow?\t" + 200_000 * b"x" + b"\t1\n", r"questions.tsv:2: not columns between tabs \(field larger"),
    ],
    ids=["bytes", "length"],
)
def test_a_line_that_no_one_can_read_is_named(line, told, folder):
    (folder / "quora-pairs").mkdir(parents=True)
    path = folder / "quora-pairs" / "quora_duplicate_questions.tsv"
    path.write_bytes(b"id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n" + line)
    with pytest.raises(InputError, match=told):
        data.load("quora-pairs")


def test_sets_of_questions(folder):
    (folder / "wikianswers").mkdir(parents=True)
    lines = "".join(json.dumps({"set": [f"q{i}", f"r{i}", f"s{i}"]}) + "\n" for i in range(100))
    (folder / "wikianswers" / "WikiAnswers.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    collection = data.load("wikianswers")
    found = {query: judged for split in collection.splits for query, judged in texts(collection, split).items()}
    assert found == {f"q{i}": {f"r{i}": 1, f"s{i}": 1} for i in range(100)}


def test_what_is_not_there_says_where_it_is_published():
    with pytest.raises(InputError, match=r"expected snli_1.0_train.jsonl or .* in a folder snli .*nlp.stanford.edu"):
        data.load("snli")
