"""python -m moe_retrieval.triplets: what it writes, and that training reads it back."""

import json

import pytest

from moe_retrieval import data
from moe_retrieval.errors import InputError
from moe_retrieval.models.export import save
from moe_retrieval.triplets import TripletsConfig, main, write_triplets
from tests.moe_retrieval.corpora import plants, write_beir
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_RETRIEVAL_CACHE", str(tmp_path / "cache"))
    return plants(tmp_path / "plants")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_bm25_negatives_are_the_next_by_words(tmp_path, capsys, folder):
    """By hand: after the answer, the document that shares two words with the query, then the one that shares one."""
    documents = {"both": "alpha beta", "one": "alpha omega omega", "all": ("alpha", "beta gamma")}
    documents |= {f"other{row}": "delta epsilon zeta" for row in range(5)}
    queries = {"q": "alpha beta gamma", "p": "delta"}
    judged = {"q": {"all": 1}, "p": {f"other{row}": 1 for row in range(5)}}
    words = write_beir(
        tmp_path / "words", documents, queries, {"train": {"q": judged["q"]}, "test": {"p": judged["p"]}}
    )
    out = tmp_path / "new" / "triplets.jsonl"
    main(["--dataset", str(words), "--num-negatives", "2", "--output", str(out)])
    assert f"2 triplets in {out}" in capsys.readouterr().out
    pair = {"query": "alpha beta gamma", "positive": "alpha beta gamma"}
    assert lines(out) == [pair | {"negative": "alpha beta"}, pair | {"negative": "alpha omega omega"}]
    read = data.load(out)
    (negatives,) = read.given_negatives.values()
    assert [dict(read.documents)[name] for name in negatives] == ["alpha beta", "alpha omega omega"]


def test_a_model_mines_them(folder, tmp_path):
    save(tmp_path / "model", tiny_retriever(), tiny_tokenizer(), "")
    config = TripletsConfig(
        str(tmp_path / "out.jsonl"), str(folder), split="test", negatives="mined", model=str(tmp_path / "model"),
        precision="fp32", num_negatives=2,
    )  # fmt: skip
    assert write_triplets(config) == len(lines(tmp_path / "out.jsonl")) == 20
    assert all(line["negative"] != line["positive"] for line in lines(tmp_path / "out.jsonl"))


def test_nothing_is_written_of_what_cannot_be_read(folder, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("kept")
    with pytest.raises(InputError, match="plants has no split 'dev'"):
        write_triplets(TripletsConfig(str(out), str(folder), split="dev"))
    with pytest.raises(InputError, match="plants names no negatives"):
        write_triplets(TripletsConfig(str(out), str(folder), negatives="in-batch"))
    assert out.read_text() == "kept"
    assert not list(tmp_path.glob(".out*"))
