"""Downloads that go on where they stopped, from a local server; versions and addresses are never mixed."""

import hashlib
import json
import random

import pytest

from moe_retrieval.data.fetch import fetch
from tests.moe_retrieval.web import serving

CONTENT = random.Random(0).randbytes(3_000_000)
OTHER = random.Random(1).randbytes(3_000_000)


@pytest.fixture
def web():
    with serving({"/a.bin": CONTENT, "/b.bin": OTHER}) as running:
        running.tags = {"/a.bin": '"one"', "/b.bin": '"one"'}
        yield running


def leave_part(web, target, size=1_000_000):
    """As an attempt that broke leaves it: without a second attempt, for the first brought nothing new."""
    web.breaks_after = [size, 0]
    with pytest.raises(OSError, match=f"the connection ended after {size} of 3000000 bytes"):
        fetch(f"{web.address}/a.bin", target)
    web.asked.clear()


def test_a_file_comes_whole_with_its_digests(web, tmp_path):
    digests = fetch(f"{web.address}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert digests == {"md5": hashlib.md5(CONTENT).hexdigest(), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_broken_connection_is_taken_up_at_once(web, tmp_path):
    web.breaks_after = [1_000_000, 500_000]
    fetch(f"{web.address}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert [wanted for _, wanted in web.asked] == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_later_call_asks_for_the_rest_alone(web, tmp_path):
    leave_part(web, tmp_path / "a.bin")
    assert (tmp_path / "a.bin.part").read_bytes() == CONTENT[:1_000_000]
    fetch(f"{web.address}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert web.asked == [("/a.bin", "bytes=1000000-")]


def test_what_was_whole_already_gets_its_name(web, tmp_path):
    leave_part(web, tmp_path / "a.bin")
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    fetch(f"{web.address}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert web.asked == [("/a.bin", "bytes=3000000-")]


def test_a_part_that_is_longer_than_the_file_is_dropped(web, tmp_path):
    leave_part(web, tmp_path / "a.bin")
    (tmp_path / "a.bin.part").write_bytes(CONTENT + b"more")
    fetch(f"{web.address}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_server_that_has_no_such_part_of_anything_is_an_error(web, tmp_path):
    """And is asked once."""
    web.refuses = True
    with pytest.raises(OSError, match="416"):
        fetch(f"{web.address}/a.bin", tmp_path / "a.bin")
    assert len(web.asked) == 1


def another_version(web, part):
    web.files["/a.bin"], web.tags["/a.bin"] = OTHER, '"two"'


def no_ranges(web, part):
    web.knows_ranges, web.files["/a.bin"] = False, OTHER


def no_version(web, part):
    """Of the part: nothing says that it is of the file that is there now."""
    web.files["/a.bin"] = OTHER
    part.with_name("a.bin.part.json").write_text(json.dumps({"url": f"{web.address}/a.bin", "version": None}))


def lost_origin(web, part):
    web.files["/a.bin"] = OTHER
    part.with_name("a.bin.part.json").write_text("[]")


@pytest.mark.parametrize("change", [another_version, no_ranges, no_version, lost_origin])
def test_bytes_of_another_version_are_never_joined(web, tmp_path, change):
    leave_part(web, tmp_path / "a.bin")
    change(web, tmp_path / "a.bin.part")
    fetch(f"{web.address}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == OTHER


def test_bytes_of_another_address_are_never_joined(web, tmp_path):
    """With the same name of a version."""
    leave_part(web, tmp_path / "a.bin")
    fetch(f"{web.address}/b.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == OTHER
    assert web.asked == [("/b.bin", None)]


def test_what_is_not_there_is_an_error_and_leaves_nothing(web, tmp_path):
    with pytest.raises(OSError, match="Not Found"):
        fetch(f"{web.address}/c.bin", tmp_path / "c.bin")
    assert not list(tmp_path.iterdir())
