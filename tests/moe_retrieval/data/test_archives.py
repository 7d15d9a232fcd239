"""Archives whose download or unpacking a process did not live to end."""

import hashlib
import io
import random
import zipfile

import pytest

from moe_retrieval.data import archives
from moe_retrieval.data.archives import fetch_archive
from moe_retrieval.errors import InputError
from moe_retrieval.locks import locked
from tests.moe_retrieval.web import serving

CORPUS = random.Random(0).randbytes(100_000)


@pytest.fixture
def web():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("words/corpus.jsonl", CORPUS)
    with serving({"/words.zip": packed.getvalue()}) as running:
        running.tags = {"/words.zip": '"one"'}
        yield running


def fetched(web, tmp_path, name, md5=None):
    """As `cached_folder` calls it: every attempt has a folder of its own beside that which it fills."""
    folder = tmp_path / "cache" / name
    folder.mkdir(parents=True)
    md5 = md5 or hashlib.md5(web.files["/words.zip"]).hexdigest()
    fetch_archive("words", [f"{web.address}/words.zip"], folder, md5)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_another_process_asks_for_the_rest_alone(web, tmp_path):
    web.breaks_after = [60_000, 0]
    with pytest.raises(InputError, match=r"cannot download words: .*the connection ended after 60000 of"):
        fetched(web, tmp_path, ".words.first")
    web.asked.clear()
    assert fetched(web, tmp_path, ".words.second") == {"corpus.jsonl": CORPUS}
    assert web.asked == [("/words.zip", "bytes=60000-")]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [".words.first", ".words.second"]


def test_what_was_killed_while_it_unpacked_is_not_downloaded_again(web, tmp_path, monkeypatch):
    def pressed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(archives, "unpack", pressed)
        with pytest.raises(KeyboardInterrupt):
            fetched(web, tmp_path, ".words.first")
    web.asked.clear()
    assert fetched(web, tmp_path, ".words.second") == {"corpus.jsonl": CORPUS}
    assert web.asked == []


def test_two_processes_do_not_write_to_one_archive(web, tmp_path):
    (tmp_path / "cache").mkdir()
    with locked(tmp_path / "cache" / ".words.download"):
        assert fetched(web, tmp_path, ".words.second") == {"corpus.jsonl": CORPUS}


def test_nothing_stays_of_an_archive_that_is_another(web, tmp_path):
    with pytest.raises(InputError, match="its md5 is"):
        fetched(web, tmp_path, ".words.first", md5="0" * 32)
    assert [path.name for path in (tmp_path / "cache").rglob("*")] == [".words.first"]
