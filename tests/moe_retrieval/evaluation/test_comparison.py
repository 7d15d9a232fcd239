"""Only a run of the same queries, documents and setting is compared."""

import json
import shutil

import pytest

from moe_retrieval import data
from moe_retrieval.errors import InputError
from moe_retrieval.evaluate import EvaluateConfig, evaluate
from moe_retrieval.models.export import save
from tests.moe_retrieval.corpora import plants
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, two collections, and what evaluating it on each left; `pool` is of the other setting."""
    folder = tmp_path_factory.mktemp("comparison")
    save(folder / "model", tiny_retriever("sb-moe"), tiny_tokenizer(), "")
    plants(folder / "plants")
    plants(folder / "more", num_documents=70)
    for name, options in {
        "plants": {},
        "more": {},
        "pool": {"setting": "gold-pool"},
        "train": {"split": "train"},
    }.items():
        collection = "more" if name == "more" else "plants"
        evaluate(config(folder, collection, output_dir=str(folder / f"of-{name}"), **options))
    return folder


def config(folder, collection="plants", **options):
    return EvaluateConfig(str(folder / "model"), str(folder / collection), no_bm25=True, **options)


def compare(folder, run, **options):
    evaluate(config(folder, against=str(run), **options))


def test_a_run_of_the_same_is_compared(folder, capsys):
    compare(folder, folder / "of-plants" / "run.trec")
    assert f"| {folder / 'of-plants' / 'run.trec'} " in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, message",
    [
        ("more", "is of dataset_fingerprint '[0-9a-f]{16}', expected '[0-9a-f]{16}'"),
        ("pool", "is of setting 'gold-pool', expected 'full'"),
        ("train", "is of split 'train', expected 'test'"),
    ],
)
def test_a_run_of_another_kind_is_refused(folder, name, message):
    with pytest.raises(InputError, match=f"of-{name}/run.trec: {message}"):
        compare(folder, folder / f"of-{name}" / "run.trec")


def test_a_run_that_is_not_what_was_written_is_refused(folder, tmp_path):
    shutil.copytree(folder / "of-plants", tmp_path / "of")
    lines = (tmp_path / "of" / "run.trec").read_bytes().splitlines(keepends=True)
    (tmp_path / "of" / "run.trec").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(InputError, match=r"of/run\.trec: is damaged, or another's"):
        compare(folder, tmp_path / "of" / "run.trec")


def lines_of(run):
    return [line.split() for line in run.read_text().splitlines()]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: [row for row in rows if row[0] != "q4"], r"nothing for 1 of 10 queries \(the first is 'q4'\)"),
        (lambda rows: [*rows, ["q99", "Q0", "d1", "1", "1", "x"]], "the query 'q99', which is not in split test"),
        (lambda rows: [[*row[:2], "z" + row[2], *row[3:]] for row in rows], r"the document 'zd\d+', which is not in"),
        (lambda rows: [[*row[:4], "nan", "x"] for row in rows], "run.trec:1: expected a score that is a finite"),
        (lambda rows: [rows[0], rows[1][:3]], r"run.trec:2: expected query Q0 document rank score tag, got 3 columns"),
    ],
)  # fmt: skip
def test_of_a_file_that_comes_alone_queries_and_documents_are_checked(folder, tmp_path, change, message):
    rows = change(lines_of(folder / "of-plants" / "run.trec"))
    (tmp_path / "run.trec").write_text("".join(" ".join(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=message):
        compare(folder, tmp_path / "run.trec")


def test_a_file_that_comes_alone_must_rank_the_documents_of_the_setting(folder, tmp_path):
    shutil.copy(folder / "of-plants" / "run.trec", tmp_path)
    compare(folder, tmp_path / "run.trec")
    with pytest.raises(InputError, match=r"ranks the document 'd\d+', which is not in the setting gold-pool"):
        compare(folder, tmp_path / "run.trec", setting="gold-pool")


def test_what_is_beside_a_run_may_be_anything(folder, tmp_path):
    """metrics.json of another program says nothing about ours."""
    shutil.copy(folder / "of-plants" / "run.trec", tmp_path)
    for content in ("[]", '{"run": 3}', "{"):
        (tmp_path / "metrics.json").write_text(content)
        compare(folder, tmp_path / "run.trec")


def test_what_is_written_says_what_it_is_of(folder):
    origin = json.loads((folder / "of-plants" / "metrics.json").read_text())["run"]
    assert origin["dataset_fingerprint"] == data.load(str(folder / "plants")).fingerprint
    assert (origin["split"], origin["setting"]) == ("test", "full")
