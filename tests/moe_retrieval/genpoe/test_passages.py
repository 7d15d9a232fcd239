"""Passages as DPR has its Wikipedia, and as JSON lines: read in place, each line checked."""

import csv
import gzip
import json
import pickle

import pytest

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.examples import Passage
from moe_retrieval.genpoe.passages import Passages

HEADER = "id\ttext\ttitle\n"
LINES = '1\t"Aaron ( or ; """"Ahärôn"""") is a prophet"\tAaron\n2\tplain "inside" text\t"A ""b"""\n3\t\tEmpty\n'
FOUND = [
    Passage("1", "Aaron", 'Aaron ( or ; ""Ahärôn"") is a prophet'),
    Passage("2", 'A "b"', 'plain "inside" text'),
    Passage("3", "Empty", ""),
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_RETRIEVAL_CACHE", str(tmp_path / "cache"))


def read(path):
    passages = Passages(path)
    return [passages.passage(row) for row in range(len(passages))]


@pytest.mark.parametrize("head", [HEADER, "", "\ufeff" + HEADER], ids=["header", "none", "mark"])
def test_tabs_quotes_and_header_are_as_in_dprs_file(tmp_path, head, caplog):
    path = tmp_path / "psgs.tsv"
    path.write_text(head + LINES, encoding="utf-8")
    assert read(path) == FOUND
    assert "1 passages are empty" in caplog.text
    with open(path, encoding="utf-8-sig", newline="") as file:  # as DPR reads it
        rows = [row for row in csv.reader(file, delimiter="\t") if row[0] != "id"]
    assert [(each.id, each.text, each.title) for each in read(path)] == [tuple(row) for row in rows]


def test_columns_are_those_that_the_header_names(tmp_path):
    (tmp_path / "x.tsv").write_text("title\tid\ttext\nT\t7\tbody\n")
    assert read(tmp_path / "x.tsv") == [Passage("7", "T", "body")]


def test_json_lines_and_compressed_files_are_read_too(tmp_path):
    records = [{"id": 1, "title": "T", "text": "a"}, {"_id": "2", "text": "b"}, {"id": "3", "title": None, "text": "c"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read(tmp_path / "x.jsonl") == [Passage("1", "T", "a"), Passage("2", "", "b"), Passage("3", "", "c")]
    (tmp_path / "y.tsv.gz").write_bytes(gzip.compress((HEADER + LINES).encode()))
    assert read(tmp_path / "y.tsv.gz") == FOUND


def test_title_and_text_are_joined_as_the_model_asks(tmp_path):
    (tmp_path / "x.tsv").write_text(HEADER + LINES + "4\tbody\t\n", encoding="utf-8")
    passages = Passages(tmp_path / "x.tsv", " [SEP] ")
    assert passages.text(1) == 'A "b" [SEP] plain "inside" text'
    assert (passages.text(2), passages.text(3)) == ("Empty", "body")
    assert list(passages.texts[1:3]) == [passages.text(1), "Empty"]
    assert passages[3] == ("4", "body")
    assert [name for name, _ in passages[:2]] == ["1", "2"]
    copy = pickle.loads(pickle.dumps(passages))
    assert copy.passage(3) == Passage("4", "", "body")
    assert copy.joint == " [SEP] "


def test_the_fingerprint_of_some_changes_with_these_alone(tmp_path):
    one, other = tmp_path / "a.tsv", tmp_path / "b.tsv"
    one.write_text(HEADER + LINES, encoding="utf-8")
    other.write_text(HEADER + LINES.replace("plain", "Plain"), encoding="utf-8")
    one, other = Passages(one), Passages(other)
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint_of(range(1)) == other.fingerprint_of(range(1))
    assert one.fingerprint_of(range(1, 2)) != other.fingerprint_of(range(1, 2))


BAD = {
    "5\tbody": "x.tsv:3: expected id, text, title between tabs, got 2 columns",
    "\tbody\tT": 'x.tsv:3: expected an "id" that is a text, got None',
    '5\t"body\tT': "x.tsv:3: not columns between tabs (unexpected end of data)",
    '5\t"body" and\tT': "x.tsv:3: not columns between tabs (",
    "5\t\udcff\tT": "x.tsv:3: not UTF-8 (byte 0xff",
}


@pytest.mark.parametrize("line", BAD, ids=ascii)
def test_a_bad_line_is_refused_with_its_number(tmp_path, line):
    """A quote that is not closed would else take the lines behind it along."""
    (tmp_path / "x.tsv").write_bytes(f"{HEADER}1\ta\tT\n{line}\n9\tlast\tT\n".encode(errors="surrogateescape"))
    with pytest.raises(InputError) as caught:
        Passages(tmp_path / "x.tsv")
    assert BAD[line] in str(caught.value)


def test_files_that_hold_no_passages_are_refused(tmp_path):
    (tmp_path / "x.tsv").write_text(HEADER)
    with pytest.raises(InputError, match=r"x\.tsv: holds no passage"):
        Passages(tmp_path / "x.tsv")
    with pytest.raises(InputError, match=r"x\.txt: expected passages in a \.tsv or \.jsonl"):
        Passages(tmp_path / "x.txt")
    for name in ("y.tsv", "y.tsv.gz"):
        with pytest.raises(InputError, match=r"y\.tsv.*: No such file"):
            Passages(tmp_path / name)
    (tmp_path / "x.jsonl").write_text('{"id": "1", "text": "a"}\n{"id": true, "text": "a"}\n')
    with pytest.raises(InputError, match=r"x\.jsonl:2: expected an \"id\" that is a text, got True"):
        Passages(tmp_path / "x.jsonl")


def test_a_passage_that_was_changed_meanwhile_is_refused(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text(HEADER + LINES, encoding="utf-8")
    passages = Passages(path)
    path.write_text((HEADER + LINES).replace("plain", "Plain"), encoding="utf-8")
    with pytest.raises(InputError, match="is damaged, or another's: document 2 is not what it was"):
        passages.passage(1)
