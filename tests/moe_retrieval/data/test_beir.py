"""BEIR format: what is read, what is refused with file and line, what is counted; downloads from a local server."""

import functools
import hashlib
import http.server
import json
import pickle
import threading
import zipfile

import pytest
from beir.datasets.data_loader import GenericDataLoader

from moe_retrieval import data
from moe_retrieval.data import beir
from moe_retrieval.errors import InputError
from tests.moe_retrieval.corpora import plants, real, write_beir, write_lines


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_RETRIEVAL_CACHE", str(tmp_path / "cache"))


def test_documents_are_a_sequence(tmp_path):
    collection = data.load(plants(tmp_path / "plants"))
    documents = collection.documents
    assert len(documents) == 60
    assert documents[3][0] == "d3"
    assert documents[3][1].startswith("Plant 3 ")
    assert documents[58:60] == [documents[58], documents[59]]
    assert [documents.row(f"d{row}") for row in range(60)] == list(range(60))
    assert documents.row("nothing") is None
    assert list(documents.texts[2:4]) == [documents[2][1], documents[3][1]]
    assert collection.name == "plants"
    assert collection.splits == ("test", "train")
    assert set(collection.queries("test")) == set(collection.qrels("test"))
    copy = pickle.loads(pickle.dumps(documents))
    assert copy[59] == documents[59]


def test_a_document_may_say_its_domain(tmp_path):
    said = [{"metadata": {"domain": "moss"}}, {}, {"metadata": "moss"}, {"metadata": {"domain": 3}}, {"metadata": {}}]
    records = [{"_id": f"d{row}", "text": "x", **more} for row, more in enumerate(said)]
    documents = data.load(write_lines(tmp_path / "corpus.jsonl", records).parent).documents
    assert [documents.domain(row) for row in range(5)] == ["moss", None, None, None, None]


@pytest.mark.parametrize("split", ["train", "test"])
def test_agrees_with_the_loader_of_beir(split):
    folder = real("scifact")
    collection = data.load(folder)
    corpus, queries, qrels = GenericDataLoader(str(folder)).load(split)
    assert collection.queries(split) == queries
    assert collection.qrels(split) == qrels
    assert len(collection.documents) == len(corpus)
    for name, text in collection.documents:
        assert text == f"{corpus[name]['title']} {corpus[name]['text']}".strip()


def test_found_by_name_in_the_data_directory(tmp_path, monkeypatch):
    plants(tmp_path / "data" / "plants")
    assert data.load("plants", tmp_path / "data").name == "plants"
    monkeypatch.setenv("MOE_RETRIEVAL_DATA", str(tmp_path / "data"))
    assert len(data.load("plants").documents) == 60


def test_fingerprint_changes_with_every_part(tmp_path):
    documents, queries, qrels = {"a": "x", "b": "y"}, {"q": "x"}, {"test": {"q": {"a": 1}}}
    variants = [
        (documents, queries, qrels),
        (documents | {"b": "z"}, queries, qrels),
        (documents, {"q": "z"}, qrels),
        (documents, queries, {"test": {"q": {"b": 1}}}),
        (documents, queries, {"test": {"q": {"a": 2}}}),
        (documents, queries, {"dev": {"q": {"a": 1}}}),
    ]
    prints = [data.load(write_beir(tmp_path / str(i), *parts)).fingerprint for i, parts in enumerate(variants)]
    assert len(set(prints)) == len(prints)
    assert data.load(write_beir(tmp_path / "again", *variants[0])).fingerprint == prints[0]


GOOD = b'{"_id": "a", "text": "x"}\n'

BAD_CORPORA = {
    b'{"_id": "b", "text": "x"\n': "corpus.jsonl:2: not JSON",
    b'{"text": "x"}\n': 'corpus.jsonl:2: expected an "_id" that is a string, got None',
    b'{"_id": "", "text": "x"}\n': 'corpus.jsonl:2: expected an "_id"',
    b'{"_id": "b\\tc", "text": "x"}\n': "corpus.jsonl:2: .* white space in it that is no single space",
    b'{"_id": "b ", "text": "x"}\n': "corpus.jsonl:2: .* white space",
    b'{"_id": "b\xe2\x90\xa0c", "text": "x"}\n': "corpus.jsonl:2: .* has \u2420 in it, which stands for a space",
    b'{"_id": "b", "title": "x"}\n': 'corpus.jsonl:2: expected a "text" that is a string, got only _id, title',
    b'{"_id": "b", "text": null}\n': 'corpus.jsonl:2: expected a "text" that is a string, got None',
    b'{"_id": "b", "text": "\xff"}\n': "corpus.jsonl:2: not UTF-8 \\(byte 0xff in column 23\\)",
    b'{"_id": "b", "text": "\\ud800"}\n': "corpus.jsonl:2: half of a surrogate pair",
    b"[1]\n": "corpus.jsonl:2: expected an object",
    b"[" * 100_000 + b"\n": "corpus.jsonl:2: not JSON \\(nested too deeply",
    b'{"_id": "b", "text": "x", "year": ' + b"9" * 10_000 + b"}\n": "corpus.jsonl:2: not JSON \\(Exceeds the limit",
    b'\n\n{"_id": "a", "text": "y"}\n': "corpus.jsonl:4: the \"_id\" 'a' is already that of line 1",
}


@pytest.mark.parametrize("line", BAD_CORPORA, ids=[message[13:40] for message in BAD_CORPORA.values()])
def test_a_bad_corpus_is_refused_with_its_line(tmp_path, line):
    (tmp_path / "corpus.jsonl").write_bytes(GOOD + line)
    with pytest.raises(InputError, match=BAD_CORPORA[line]):
        data.load(tmp_path)


def test_an_empty_corpus_is_refused(tmp_path):
    (tmp_path / "corpus.jsonl").write_bytes(b"\n")
    with pytest.raises(InputError, match=r"corpus.jsonl: holds no document"):
        data.load(tmp_path)


def test_harmless_oddities_are_read(tmp_path, caplog):
    lines = (
        b'\xef\xbb\xbf{"_id": 1, "title": null, "text": "caf\xc3\xa9 \\ud83d\\ude00"}\r\n\n{"_id": "2", "text": " "}'
    )
    (tmp_path / "corpus.jsonl").write_bytes(lines)
    documents = data.load(tmp_path).documents
    assert list(documents) == [("1", "café 😀"), ("2", "")]
    assert "1 documents are empty (the first in line 3)" in caplog.text


BAD_QRELS = {
    "q\ta": "test.tsv:2: expected query-id, corpus-id, score between tabs, got 2 columns",
    "q\ta\tyes": "test.tsv:2: expected a score that is an integer, got 'yes'",
    "p\ta\t1": "test.tsv:2: the query 'p' is not in .*queries.jsonl",
    f"q\ta\t{10**25}": "test.tsv:2: expected a score of at most 2147483647 either way, got 10000",
    f"q\ta\t{'9' * 10_000}": r"test.tsv:2: expected a score that is an integer, got '9{39}$",
    "q\ta\t1\nq\ta\t2": "test.tsv:3: 'q' with 'a' was 1, now 2",
}


@pytest.mark.parametrize("rows", BAD_QRELS)
def test_bad_qrels_are_refused_with_their_line(tmp_path, rows):
    write_beir(tmp_path, {"a": "x"}, {"q": "x"}, {})
    (tmp_path / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}\n")
    with pytest.raises(InputError, match=BAD_QRELS[rows]):
        data.load(tmp_path)


def test_qrels_of_unknown_documents_are_counted_and_kept(tmp_path, caplog):
    write_beir(tmp_path, {"a": "x"}, {"q": "x"}, {})
    (tmp_path / "qrels" / "test.tsv").write_text("q\ta\t1\nq\ta\t1\nq\tgone\t1\nq\tlost\t1\n")
    collection = data.load(tmp_path)
    assert collection.qrels("test") == {"q": {"a": 1, "gone": 1, "lost": 1}}
    assert "2 judgements name documents that are not in the corpus (the first in line 3)" in caplog.text
    assert "1 judgements come twice (the first in line 2)" in caplog.text


def test_bad_queries_and_negatives(tmp_path, caplog):
    write_beir(tmp_path, {"a": "x"}, {"q": "x", "p": " "}, {"test": {"q": {"a": 1}}})
    write_lines(tmp_path / "negatives.jsonl", [{"_id": "q", "negatives": ["gone"]}])
    with pytest.raises(InputError, match=r"negatives.jsonl:1: the document 'gone' is not in"):
        data.load(tmp_path)
    assert "1 queries are empty" in caplog.text
    write_lines(tmp_path / "queries.jsonl", [{"_id": "q", "text": "x"}, {"_id": "q", "text": "y"}])
    with pytest.raises(InputError, match=r"queries.jsonl:2: the \"_id\" 'q' has come before"):
        data.load(tmp_path)


def test_unknown_names_and_splits(tmp_path):
    with pytest.raises(InputError, match="no data set 'nowhere'"):
        data.load("nowhere")
    with pytest.raises(InputError, match="plants has no split 'dev'; it has test, train"):
        data.load(plants(tmp_path / "plants")).qrels("dev")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A mirror on 127.0.0.1 that serves a folder; the first mirror in the list does not exist."""
    root = tmp_path / "mirror"
    root.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        here = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setenv("MOE_RETRIEVAL_MIRRORS", f"{here}/missing/{{name}}.zip {here}/{{name}}.zip")
        monkeypatch.setattr(beir, "MIRRORS", ())
        monkeypatch.delenv("MOE_RETRIEVAL_DATA", raising=False)
        yield root
        running.shutdown()
        thread.join()


def publish(root, monkeypatch, members: dict[str, bytes], md5: str | None = None) -> None:
    with zipfile.ZipFile(root / "scifact.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    monkeypatch.setitem(beir.MD5, "scifact", md5 or hashlib.md5((root / "scifact.zip").read_bytes()).hexdigest())


def test_download(server, monkeypatch, tmp_path):
    folder = plants(tmp_path / "source")
    members = {f"scifact/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    publish(server, monkeypatch, members)
    collection = data.load("scifact")
    assert collection.name == "scifact"
    assert collection.fingerprint == data.load(folder).fingerprint
    (server / "scifact.zip").unlink()
    assert data.load("scifact").fingerprint == collection.fingerprint


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside.txt", "scifact/../../outside.txt"])
def test_an_archive_that_would_leave_its_folder_is_refused(server, monkeypatch, tmp_path, name):
    publish(server, monkeypatch, {"scifact/corpus.jsonl": GOOD, name: b"x"})
    with pytest.raises(InputError, match="would leave the folder"):
        data.load("scifact")
    assert not list(tmp_path.rglob("outside.txt"))
    assert not list((tmp_path / "cache" / "beir").iterdir())


def test_an_archive_with_a_link_is_refused(server, monkeypatch, tmp_path):
    link = zipfile.ZipInfo("scifact/corpus.jsonl")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(server / "scifact.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    monkeypatch.setitem(beir.MD5, "scifact", hashlib.md5((server / "scifact.zip").read_bytes()).hexdigest())
    with pytest.raises(InputError, match="would leave the folder"):
        data.load("scifact")


def test_a_wrong_checksum_and_dead_mirrors_are_named(server, monkeypatch, tmp_path):
    publish(server, monkeypatch, {"scifact/corpus.jsonl": GOOD}, md5="0" * 32)
    with pytest.raises(
        InputError, match=r"missing/scifact.zip: File not found; .*scifact.zip: its md5 is \w+, not 0000"
    ):
        data.load("scifact")
    assert not list((tmp_path / "cache" / "beir").iterdir())


def test_the_title_joins_the_text_as_in_beir(tmp_path):
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"_id": "a", "title": "T", "text": "x"}))
    assert data.load(tmp_path).documents[0] == ("a", "T x")


def test_what_has_no_published_checksum_is_taken_and_said_to_be_so(tmp_path, monkeypatch, caplog):
    folder = plants(tmp_path / "nq-train")
    with zipfile.ZipFile(tmp_path / "nq-train.zip", "w") as archive:
        for path in filter(lambda path: path.is_file(), folder.rglob("*")):
            archive.write(path, path.relative_to(tmp_path))
    monkeypatch.setenv("MOE_RETRIEVAL_MIRRORS", f"file://{tmp_path}/{{name}}.zip")
    monkeypatch.chdir("/")
    monkeypatch.delenv("MOE_RETRIEVAL_DATA", raising=False)
    assert data.load("nq-train").qrels("train") == data.load(folder).qrels("train")
    md5 = hashlib.md5((tmp_path / "nq-train.zip").read_bytes()).hexdigest()
    assert f"no checksum of it is published; it has md5 {md5}" in caplog.text
