"""What is found in a folder, and what is refused."""

import pytest

from moe_retrieval.errors import InputError
from moe_retrieval.reporting.sources import as_json, finite, read_sources
from tests.moe_retrieval.reporting.made import analysis, comparison, system, write


def test_a_comparison_with_its_runs_and_analyses(tmp_path):
    systems = {"BM25": system(0.3, seeds=()), "dense": system(0.4, folders=["dense-seed0", "dense-seed1"])}
    write(tmp_path, "comparison.json", comparison(systems | {"moe": system(0.5, folders=["moe-seed0"])}))
    (tmp_path / "dense-seed1").mkdir()
    write(tmp_path / "moe-seed0" / "looked at", "analysis.json", analysis())
    elsewhere = write(tmp_path.parent / f"{tmp_path.name}-elsewhere", "analysis.json", analysis())
    found = read_sources(tmp_path, [str(elsewhere), str(tmp_path / "moe-seed0" / "looked at")])
    assert found.runs == {"dense": [tmp_path / "dense-seed1"], "moe": [tmp_path / "moe-seed0"]}
    assert [each.label for each in found.analyses] == ["moe-seed0/looked at", elsewhere.name]
    assert found.split == "test"
    assert found.colors() == {"dense": 0, "moe": 1, "BM25": -1}


def test_a_single_run_is_a_source(tmp_path):
    run = write(tmp_path / "main", "metrics.json", {"NDCG@10": 0.5, "run": {"dataset": "docs"}})
    assert read_sources(run).runs == {}
    (run / "log.jsonl").write_text("")
    assert read_sources(run).runs == {"main": [run]}


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("comparison.json", {"systems": {}}, r"comparison\.json: it has no 'collection'; the command that wrote it"),
        ("comparison.json", comparison({}), r"comparison\.json: it has no 'systems'"),
        ("comparison.json", comparison({"dense": {"seeds": []}}), r"comparison\.json: it has no 'folders'"),
        ("comparison.json", [], "expected an object"),
        ("metrics.json", {"run": []}, r"metrics\.json: it has no 'run'"),
        ("analysis.json", {"run": {}}, r"analysis\.json: it has no 'layers'"),
        ("other.json", {}, "holds nothing to report on: expected comparison.json"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, name, content, told):
    with pytest.raises(InputError, match=told) as caught:
        read_sources(write(tmp_path, name, content))
    assert "\n" not in str(caught.value)


def test_folders_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match=r"--input .*gone is no directory"):
        read_sources(tmp_path / "gone")
    with pytest.raises(InputError, match=r"--analyses nowhere: holds no analysis\.json, which python -m"):
        read_sources(write(tmp_path, "comparison.json", comparison({"a": system(0.5)})), ["nowhere"])


def test_what_no_line_can_be_drawn_through_is_a_gap():
    assert [finite(value) for value in (1, 0.5, float("nan"), float("-inf"), "x", None)] == [1, 0.5] + [None] * 4


def test_what_is_no_json_is_not_written():
    with pytest.raises(ValueError, match="JSON"):
        as_json([float("nan")])
