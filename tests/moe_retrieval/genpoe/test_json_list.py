"""A JSON list of objects, read one by one: the same as by json.loads, wherever the file is cut into pieces."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe import json_list
from moe_retrieval.genpoe.json_list import read_list

TEXTS = st.text(st.sampled_from('a"\\\n{}[],:é\u2028😀\x00'), max_size=6)
VALUES = st.recursive(
    st.sampled_from([None, True, False, -12, 3.5e-7, float("-inf")]) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(TEXTS, VALUES, max_size=3), max_size=5),
       st.sampled_from([None, 1]), st.booleans(), st.integers(1, 40))  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_equals_the_whole_file_parsed_at_once(tmp_path_factory, objects, indent, ascii_only, chunk):
    path = tmp_path_factory.getbasetemp() / "x.json"
    path.write_text(json.dumps(objects, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_list, "CHUNK", chunk)
        found = list(read_list(path))
    assert [value for _, value in found] == json.loads(path.read_text("utf-8"))
    assert [where for where, _ in found] == [f"{path}:entry {number}" for number in range(1, len(objects) + 1)]


def test_lines_and_compressed_files_are_read_too(tmp_path):
    objects = [{"a": 1}, {"a": "ü"}]
    lines = "".join(json.dumps(each) + "\n" for each in objects)
    (tmp_path / "x.jsonl").write_text(lines)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(objects).encode()))
    for name in ("x.jsonl", "x.jsonl.gz", "x.json.gz"):
        assert [value for _, value in read_list(tmp_path / name)] == objects


def test_a_long_file_is_not_held_in_memory(tmp_path, monkeypatch):
    """What waits is never more than a few pieces."""
    monkeypatch.setattr(json_list, "CHUNK", 1000)
    (tmp_path / "x.json").write_text(json.dumps([{"text": "y" * 50}] * 5000))
    most = 0
    whole = json_list._Reader.read_more

    def watched(reader):
        nonlocal most
        more = whole(reader)
        most = max(most, len(reader.waiting))
        return more

    monkeypatch.setattr(json_list._Reader, "read_more", watched)
    assert sum(1 for _ in read_list(tmp_path / "x.json")) == 5000
    assert 1000 <= most < 3000


BAD = {
    b"": "x.json: expected a list [...] of objects, got 'nothing'",
    b'{"a": 1}': "x.json: expected a list [...] of objects, got '{'",
    b"[1]": "x.json:entry 1: expected an object {...}, got '1]'",
    b'[{"a": 1}': "x.json:entry 1: expected a comma or the end of the list behind it, got the end of the file",
    b'[{"a": 1} {"a": 2}]': "x.json:entry 1: expected a comma or the end of the list behind it, got '{",
    b'[{"a": 1},]': "x.json:entry 1: a comma after the last object",
    b'[{"a": 1}, ': "x.json:entry 2: expected an object {...}, got the end of the file",
    b'[{"a": 1}, {"b": tru}]': "x.json:entry 2: not JSON (Expecting value)",
    b'[{"a": 1}, {"b": "cut': "x.json:entry 2: not JSON (Unterminated string starting at)",
    b'[{"a": 1}] []': "x.json: expected nothing behind the list, got '[]'",
    b'[{"a": "\\ud800"}]': "x.json:entry 1: half of a surrogate pair",
    b'[{"a": "\xff"}]': "x.json: not UTF-8 (byte 0xff)",
    b'[{"a": ' + b"[" * 100_000: "x.json:entry 1: not JSON (nested too deeply)",
    b'[{"a": ' + b"9" * 10_000 + b"}]": "x.json:entry 1: not JSON (Exceeds the limit",
}


@pytest.mark.parametrize("content", BAD, ids=lambda content: repr(content[:20]))
def test_what_is_no_list_of_objects_is_refused_with_its_entry(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(read_list(tmp_path / "x.json"))
    assert BAD[content] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_whole_is_told(tmp_path):
    with pytest.raises(InputError, match=r"x\.json: No such file"):
        list(read_list(tmp_path / "x.json"))
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(b'[{"a": 1}]' * 100)[:-9])
    with pytest.raises(InputError, match=r"x\.json\.gz: not a whole gzip file"):
        list(read_list(tmp_path / "x.json.gz"))
