"""What comes compressed or through standard input is read as the plain file would be."""

import gzip
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moe_retrieval import data
from moe_retrieval.data.records import Documents
from moe_retrieval.data.sentences import read_labelled, read_pairs
from moe_retrieval.errors import InputError
from moe_retrieval.models.export import save
from moe_retrieval.retrieval.index import Index
from moe_retrieval.search import read_questions
from tests.moe_retrieval.corpora import plants, write_lines
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_RETRIEVAL_CACHE", str(tmp_path / "cache"))


def compress(path):
    """In its place NAME.gz."""
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def test_a_collection_may_be_compressed(tmp_path):
    plain = data.load(plants(tmp_path / "plants"))
    texts = list(plain.documents)
    for path in [*(tmp_path / "plants").glob("*.jsonl"), *(tmp_path / "plants").glob("qrels/*.tsv")]:
        compress(path)
    packed = data.load(tmp_path / "plants")
    assert packed.fingerprint == plain.fingerprint
    assert packed.splits == plain.splits
    assert list(packed.documents) == texts
    assert data.load("plants", tmp_path).fingerprint == plain.fingerprint


def test_a_plain_file_wins_over_an_old_compressed_one(tmp_path):
    folder = plants(tmp_path / "plants")
    plain = data.load(folder)
    for path in [*folder.glob("*.jsonl"), *folder.glob("qrels/*.tsv")]:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes().splitlines(keepends=True)[0]))
    both = data.load(folder)
    assert {split: both.qrels(split) for split in both.splits} == {split: plain.qrels(split) for split in plain.splits}
    assert both.fingerprint == plain.fingerprint


def test_training_lines_and_questions_may_be_compressed(tmp_path):
    lines = [{"query": f"query {i}", "positive": f"document {i}"} for i in range(40)]
    plain = data.load(write_lines(tmp_path / "pairs.jsonl", lines))
    compress(tmp_path / "pairs.jsonl")
    packed = data.load(tmp_path / "pairs.jsonl.gz")
    assert (packed.name, packed.fingerprint) == ("pairs", plain.fingerprint)
    (tmp_path / "split").mkdir()
    for split in ("train", "dev"):
        compress(write_lines(tmp_path / "split" / f"{split}.jsonl", lines))
    assert data.load(tmp_path / "split").splits == ("dev", "train")
    (tmp_path / "q.txt.gz").write_bytes(gzip.compress(b"moss\noak\n"))
    assert [question.text for question in read_questions(str(tmp_path / "q.txt.gz"))] == ["moss", "oak"]


def test_sentences_may_be_compressed(tmp_path):
    compress(write_lines(tmp_path / "pairs" / "test.jsonl", [{"sentence1": "a", "sentence2": "b", "score": 1}]))
    assert read_pairs(str(tmp_path / "pairs")) == [("a", "b", 1.0)]
    compress(write_lines(tmp_path / "classes" / "test.jsonl", [{"text": "a", "label": "b"}]))
    assert read_labelled(str(tmp_path / "classes")) == [("a", "b")]


def test_sentences_as_they_are_published_may_be_compressed(tmp_path):
    for name, line in {"sts-test.csv": "a\tb\tc\td\t2.5\tone\ttwo\n", "TREC_10.label": "DESC:manner How ?\n"}.items():
        (tmp_path / name).write_text(line)
        compress(tmp_path / name)
    assert read_pairs(str(tmp_path)) == [("one", "two", 2.5)]
    assert read_labelled(str(tmp_path)) == [("How ?", "DESC")]


@pytest.mark.parametrize(
    "content", [b"plain", gzip.compress(b'{"_id": "a", "text": "x"}\n', mtime=0)[:-9]], ids=["plain", "cut"]
)
def test_what_is_no_whole_gzip_file_is_refused(tmp_path, content):
    (tmp_path / "corpus.jsonl.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"corpus.jsonl.gz: not a whole gzip file \("):
        Documents(tmp_path / "corpus.jsonl.gz")


def test_a_bad_line_is_named_as_the_file_that_was_given(tmp_path, monkeypatch):
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress(b"[1]\n"))
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/corpus.jsonl.gz:1: expected an object")):
        Documents(tmp_path / "corpus.jsonl.gz")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"[1]\n")))
    with pytest.raises(InputError, match=r"^standard input:1: expected an object"):
        Documents("-")


def test_a_corpus_may_come_through_standard_input(tmp_path):
    """Three seconds: what is copied must go with the process."""
    corpus = plants(tmp_path / "plants") / "corpus.jsonl"
    save(tmp_path / "run", tiny_retriever(), tiny_tokenizer(), "")
    command = [sys.executable, "-m", "moe_retrieval.index", "--model", tmp_path / "run", "--corpus", "-"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with open(corpus, "rb") as lines:
        done = subprocess.run(
            [*command, "--output-dir", tmp_path / "index"], stdin=lines, capture_output=True, text=True,
            env={"TMPDIR": str(temporary), "PATH": "/usr/bin:/bin"}, cwd=Path(__file__).parents[3],
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(Index(tmp_path / "index").documents) == list(Documents(corpus))
    assert not [path for path in temporary.iterdir() if path.name.startswith("moe_retrieval-")]


def test_standard_input_goes_to_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="standard input goes to one process only"):
        Documents("-")
