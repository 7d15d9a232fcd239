"""The command download: what is fetched from a local server, found in a folder, and held against what is known."""

import dataclasses
import gzip
import hashlib
import json
from types import SimpleNamespace

import pytest

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe import catalogue
from moe_retrieval.genpoe.catalogue import FILES
from moe_retrieval.genpoe.download import main
from moe_retrieval.locks import locked
from tests.moe_retrieval.hub import write_repository
from tests.moe_retrieval.web import serving

TEST = "data.retriever.qas.nq-test"
WIKIPEDIA = "data.wikipedia_split.psgs_w100"
QUESTIONS = b"who\t['she']\n"
PASSAGES = gzip.compress(b"id\ttext\ttitle\n1\ta\tT\n")


@pytest.fixture
def web(monkeypatch):
    files = {"/data/retriever/nq-test.qa.csv": QUESTIONS, "/wikipedia_split/psgs_w100.tsv.gz": PASSAGES}
    with serving(files) as running:
        monkeypatch.setattr(catalogue, "HOME", running.address)
        small = dataclasses.replace(FILES[WIKIPEDIA], size=len(PASSAGES), md5=hashlib.md5(PASSAGES).hexdigest())
        monkeypatch.setitem(FILES, WIKIPEDIA, small)
        yield running


@pytest.fixture(autouse=True)
def no_data(monkeypatch, tmp_path):
    monkeypatch.delenv("MOE_RETRIEVAL_DATA", raising=False)
    monkeypatch.setenv("MOE_RETRIEVAL_CACHE", str(tmp_path / "cache"))


def download(capsys, *arguments):
    main(list(map(str, arguments)))
    return [line.split("  ") for line in capsys.readouterr().out.splitlines()]


def test_a_file_is_fetched_once(web, tmp_path, capsys):
    place = tmp_path / "d" / "data" / "retriever" / "qas" / "nq-test.csv"
    for _ in range(2):
        assert download(capsys, TEST, "--data-dir", tmp_path / "d") == [[TEST, str(place)]]
    assert place.read_bytes() == QUESTIONS
    assert len(web.asked) == 1
    seen = json.loads((tmp_path / "d" / "seen.json").read_text())
    expected = {"size": len(QUESTIONS), "sha256": hashlib.sha256(QUESTIONS).hexdigest()}
    assert seen == {"data/retriever/qas/nq-test.csv": expected}


def test_without_a_folder_files_go_to_the_cache_and_are_found_in_the_data_directory(web, tmp_path, capsys, monkeypatch):
    ((_, place),) = download(capsys, TEST)
    assert place == str(tmp_path / "cache" / "dpr" / "data" / "retriever" / "qas" / "nq-test.csv")
    known = tmp_path / "known" / "dpr" / "nq-test.qa.csv"
    known.parent.mkdir(parents=True)
    known.write_bytes(QUESTIONS)
    monkeypatch.setenv("MOE_RETRIEVAL_DATA", str(tmp_path / "known"))
    assert download(capsys, TEST) == [[TEST, str(known)]]


@pytest.mark.parametrize(
    "place", ["psgs_w100.tsv.gz", "psgs_w100.tsv", "downloads/data/wikipedia_split/psgs_w100.tsv",
              "data/wikipedia_split/psgs_w100.tsv.gz"],
)  # fmt: skip
def test_a_folder_that_is_there_already_is_used(web, tmp_path, capsys, place):
    """Also one that DPR's own program left, with its files unpacked."""
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PASSAGES if place.endswith(".gz") else gzip.decompress(PASSAGES))
    for flags in ([], ["--verify"]):
        assert download(capsys, WIKIPEDIA, "--data-dir", tmp_path, *flags) == [[WIKIPEDIA, str(path)]]
    assert web.asked == []


def test_a_beginning_names_several_and_hub_names_are_encoders(web, tmp_path, capsys, monkeypatch):
    web.files |= {f"/data/retriever/nq-{split}.qa.csv": QUESTIONS for split in ("train", "dev")}
    found = download(capsys, "data.retriever.qas.nq", "--data-dir", tmp_path)
    assert [name for name, _ in found] == [f"data.retriever.qas.nq-{split}" for split in ("train", "dev", "test")]
    folder = write_repository(tmp_path / "hub", monkeypatch)
    monkeypatch.setitem(catalogue.ENCODERS, "some/model", "a stand-in")
    assert download(capsys, "some/model") == [["some/model", str(folder)]]


def test_without_a_name_all_is_listed(tmp_path, capsys):
    (tmp_path / "nq-test.qa.csv").write_bytes(QUESTIONS)
    main(["--data-dir", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(FILES) + len(catalogue.ENCODERS)
    assert [line for line in lines if str(tmp_path) in line] == [line for line in lines if line.startswith(f"{TEST} ")]
    assert next(line for line in lines if line.startswith(WIKIPEDIA)).endswith("; 4,695 MB")


def test_a_file_with_another_checksum_is_not_kept(web, tmp_path):
    web.files["/wikipedia_split/psgs_w100.tsv.gz"] = PASSAGES[:-1] + b"?"
    with pytest.raises(InputError, match=r"cannot download http.*psgs_w100.tsv.gz: its md5 is \w+, not \w+$"):
        main([WIKIPEDIA, "--data-dir", str(tmp_path)])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_that_is_not_whole_is_told(web, tmp_path):
    (tmp_path / "psgs_w100.tsv.gz").write_bytes(PASSAGES[:-1])
    with pytest.raises(InputError, match=f"its size is {len(PASSAGES) - 1}, expected {len(PASSAGES)}: it is not whole"):
        main([WIKIPEDIA, "--data-dir", str(tmp_path)])


def test_a_flipped_bit_is_found_where_files_are_verified(web, tmp_path, capsys, caplog):
    (tmp_path / "psgs_w100.tsv.gz").write_bytes(PASSAGES[:-1] + b"?")
    download(capsys, WIKIPEDIA, "--data-dir", tmp_path)
    with pytest.raises(InputError, match="its md5 is"):
        main([WIKIPEDIA, "--data-dir", str(tmp_path), "--verify"])
    ((_, place),) = download(capsys, TEST, "--data-dir", tmp_path / "d")
    download(capsys, TEST, "--data-dir", tmp_path / "d", "--verify")
    with open(place, "r+b") as file:
        file.write(b"W")
    with pytest.raises(InputError, match="its sha256 is"):
        main([TEST, "--data-dir", str(tmp_path / "d"), "--verify"])
    (tmp_path / "nq-test.qa.csv").write_bytes(QUESTIONS)
    download(capsys, TEST, "--data-dir", tmp_path, "--verify")
    assert f"no checksum of it is known; its sha256 is {hashlib.sha256(QUESTIONS).hexdigest()}" in caplog.text


def test_another_file_than_was_fetched_before_is_told(web, tmp_path, capsys, caplog):
    ((_, place),) = download(capsys, TEST, "--data-dir", tmp_path)
    (tmp_path / place).unlink()
    web.files["/data/retriever/nq-test.qa.csv"] = QUESTIONS * 2
    download(capsys, TEST, "--data-dir", tmp_path)
    assert "is another file than was fetched before" in caplog.text


def test_what_is_there_already_needs_no_room(web, tmp_path, monkeypatch):
    """A download goes on where the disk has room for the rest alone."""
    part = tmp_path / "data" / "wikipedia_split" / "psgs_w100.tsv.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(PASSAGES[:-3])
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=3))
    main([WIKIPEDIA, "--data-dir", str(tmp_path)])
    assert part.with_suffix("").read_bytes() == PASSAGES
    part.with_suffix("").unlink()
    with pytest.raises(InputError, match="0 MB free, 1 MB needed"):
        main([WIKIPEDIA, "--data-dir", str(tmp_path)])


@pytest.mark.parametrize("line", [{}, 5, {"size": 5}])
def test_a_line_of_seen_files_that_is_none_says_nothing(web, tmp_path, capsys, line):
    (tmp_path / "seen.json").write_text(json.dumps({"data/retriever/qas/nq-test.csv": line}))
    for _ in range(2):
        download(capsys, TEST, "--data-dir", tmp_path, "--verify")
    assert json.loads((tmp_path / "seen.json").read_text())["data/retriever/qas/nq-test.csv"]["size"] == len(QUESTIONS)


def test_what_cannot_be_had_is_one_line(web, tmp_path):
    with pytest.raises(InputError, match=r"nothing is called 'data\.retriever\.q': without a name, all"):
        main(["data.retriever.q"])
    with pytest.raises(InputError, match=r"cannot download http.*nq-dev.qa.csv: Not Found$"):
        main(["data.retriever.qas.nq-dev", "--data-dir", str(tmp_path)])
    with locked(tmp_path / "d"), pytest.raises(InputError, match=r"is in use by process .* give another --data-dir"):
        main([TEST, "--data-dir", str(tmp_path / "d")])


def test_names_and_addresses_are_those_of_dpr():
    """A few of each kind, as DPR's own download_data.py has them."""
    known = {
        "data.retriever.nq-dev": "data/retriever/biencoder-nq-dev.json.gz",
        "data.retriever.trivia-train": "data/retriever/biencoder-trivia-train.json.gz",
        "data.retriever.qas.trivia-test": "data/retriever/trivia-test.qa.csv.gz",
        "data.retriever_results.nq.single.test": "data/retriever_results/single/nq-test.json.gz",
        "data.reader.nq.single.train_7": "data/reader/nq/single/train.7.pkl",
        "data.reader.trivia.multi-hybrid.dev": "data/reader/trivia/multi-hybrid/dev.0.pkl",
    }
    assert {name: FILES[name].url for name in known} == {
        name: f"https://dl.fbaipublicfiles.com/dpr/{path}" for name, path in known.items()
    }
    assert len(FILES) == 1 + 4 + 1 + 6 + 3 + 20


def test_no_file_is_taken_for_another(tmp_path, capsys):
    """NQ's data for a reader ends in the same words as that of TriviaQA."""
    places = [place for file in FILES.values() for place in file.places]
    assert len(set(places)) == len(places)
    (tmp_path / "train.0.pkl").touch()
    main(["--data-dir", str(tmp_path)])
    assert str(tmp_path) not in capsys.readouterr().out
