"""The Multi-Domain Benchmark, as its own description has the files."""

import json
import zipfile

import pytest

from moe_retrieval import data
from moe_retrieval.errors import InputError
from tests.moe_retrieval.corpora import write_lines


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_RETRIEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MOE_RETRIEVAL_DATA", raising=False)


def paper(name, title, text):
    more = dict.fromkeys(("publication_date", "timestamp", "conference_series_id", "journal_id", "doi"), "x")
    return {"id": name, "title": title, "text": text, "keywords": ["k"], "fields_of_study": ["f"], **more}


def asked(name, text, answers, **more):
    user = {"user_id": "u", "user_doc_ids": ["3"], "timestamp": 1}
    bm25 = {"bm25_doc_ids": ["2", "1"], "bm25_doc_scores": [2.5, 1.0]}
    return {"id": name, "text": text, "rel_doc_ids": answers, **user, **bm25, **more}


def write_domain(folder):
    papers = [paper("1", "Sorting", "in place"), paper(2, "Trees", None), paper("3", "Graphs", "with edges")]
    write_lines(folder / "collection.jsonl", papers)
    write_lines(folder / "train" / "queries.jsonl", [asked("a", "sort", ["1", "2"]), asked("b", "walk", [2])])
    write_lines(folder / "val" / "queries.jsonl", [asked("c", "balance", ["2"])])
    write_lines(folder / "test" / "queries.jsonl", [asked("d", "edges", ["3"])])
    (folder / "test" / "qrels.json").write_text(json.dumps({"d": {"3": 1, "1": 0}}))
    return folder


EXPECTED = {
    "train": {"a": {"1": 1, "2": 1}, "b": {"2": 1}},
    "dev": {"c": {"2": 1}},
    "test": {"d": {"3": 1, "1": 0}},
}


@pytest.mark.parametrize("place", ["multi-domain/computer_science", "multi-domain/cs", "computer_science"])
def test_found_in_the_data_directory_by_name(place, tmp_path, monkeypatch):
    write_domain(tmp_path / "data" / place)
    collection = data.load("multi-domain/cs", tmp_path / "data")
    assert collection.name == "multi-domain/cs"
    assert collection.all_qrels == EXPECTED
    assert list(collection.documents) == [("1", "Sorting in place"), ("2", "Trees"), ("3", "Graphs with edges")]
    assert collection.queries("train") == {"a": "sort", "b": "walk"}
    monkeypatch.setenv("MOE_RETRIEVAL_DATA", str(tmp_path / "data"))
    assert data.load("multi-domain/cs").fingerprint == collection.fingerprint


def test_a_folder_of_it_is_a_data_set(tmp_path):
    folder = write_domain(tmp_path / "political_science")
    assert data.load(folder).name == "political_science"
    assert data.load(folder).all_qrels == EXPECTED
    write_lines(folder / "val" / "queries.jsonl", [asked("c", "balance", ["1"])])
    assert data.load(folder).qrels("dev") == {"c": {"1": 1}}
    (folder / "test" / "qrels.json").write_text(json.dumps({"d": {"2": 1}}))
    assert data.load(folder).qrels("test") == {"d": {"2": 1}}


def test_downloaded_from_a_mirror(tmp_path, monkeypatch, caplog):
    folder = write_domain(tmp_path / "source" / "political_science")
    with zipfile.ZipFile(tmp_path / "political_science.zip", "w") as archive:
        for path in filter(lambda path: path.is_file(), folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    monkeypatch.setenv("MOE_RETRIEVAL_MIRRORS", f"file://{tmp_path}/{{name}}.zip")
    assert data.load("multi-domain/ps").all_qrels == EXPECTED
    assert "no checksum of it is published; it has md5 " in caplog.text
    (tmp_path / "political_science.zip").unlink()
    assert data.load("multi-domain/ps").name == "multi-domain/ps"


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(InputError, match="no data set 'multi-domain/law': expected one of multi-domain/cs, m"):
        data.load("multi-domain/law")
    folder = write_domain(tmp_path / "physics")
    write_lines(folder / "val" / "queries.jsonl", [asked("c", "balance", "2")])
    with pytest.raises(InputError, match=r'val/queries.jsonl:1: expected "rel_doc_ids" that are a list .*, got \'2\''):
        data.load(folder)
    write_lines(folder / "val" / "queries.jsonl", [asked("a", "another", ["2"])])
    with pytest.raises(InputError, match=r"val/queries.jsonl:1: the query 'a' has come before with another text"):
        data.load(folder)


@pytest.mark.parametrize("judged", [{"d": {"3": "high"}}, {"d": {"3": None}}, {"d": ["3"]}], ids=str)
def test_judgements_that_are_none_are_named(judged, tmp_path):
    folder = write_domain(tmp_path / "physics")
    (folder / "test" / "qrels.json").write_text(json.dumps(judged))
    with pytest.raises(InputError, match=r"test/qrels.json: expected {document id: relevance} of 'd', got"):
        data.load(folder)


def test_fields_that_are_no_text_are_named_with_their_line(tmp_path):
    folder = write_domain(tmp_path / "physics")
    write_lines(folder / "test" / "queries.jsonl", [asked("d", "edges", [{"id": 3}])])
    (folder / "test" / "qrels.json").unlink()
    with pytest.raises(InputError, match=r'test/queries.jsonl:1: expected "rel_doc_ids" that are a list of document'):
        data.load(folder)
    write_lines(folder / "collection.jsonl", [paper("1", "Sorting", "in place"), paper("2", 7, "text")])
    with pytest.raises(InputError, match=r'collection.jsonl:2: expected a "title" that is a string, got 7'):
        data.load(folder)
