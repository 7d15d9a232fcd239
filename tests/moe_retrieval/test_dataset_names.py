"""Several data sets in one text."""

import pytest

from moe_retrieval.config import TrainConfig
from moe_retrieval.dataset_names import split_names
from moe_retrieval.errors import InputError
from moe_retrieval.evaluate import EvaluateConfig, evaluate
from moe_retrieval.triplets import TripletsConfig


@pytest.mark.parametrize(
    "text, expected",
    [
        ("docs", [("docs", 1)]),
        ("docs, scifact:2,nq:0.1", [("docs", 1), ("scifact", 2), ("nq", 0.1)]),
        ("hf:some/name:config:3", [("hf:some/name:config", 3)]),
        ("hf:some/name", [("hf:some/name", 1)]),
        ("/nowhere/at/all", [("/nowhere/at/all", 1)]),
    ],
)
def test_names_and_weights(text, expected):
    assert split_names(text) == expected


def test_a_list_may_be_longer_than_any_path():
    names = [f"name-{number}" for number in range(1000)]
    assert [named.name for named in split_names(",".join(names))] == names


def test_a_path_that_is_there_is_one_whatever_is_in_its_name(tmp_path):
    for name in ("a,b:2", "c:3"):
        (tmp_path / name).mkdir()
    assert split_names(f"{tmp_path}/a,b:2") == [(f"{tmp_path}/a,b:2", 1)]
    assert split_names(f"docs,{tmp_path}/c:3") == [("docs", 1), (f"{tmp_path}/c:3", 1)]


@pytest.mark.parametrize(
    "text, message",
    [
        ("docs,,scifact", "--dataset: expected names with commas between, like docs,scifact:2, got 'docs,,scifact'"),
        ("docs:0", "--dataset: the weight of docs must be above 0"),
        ("docs:1000000000000", "--dataset: the weight of docs must be above 0 and at most 1000"),
        ("docs,scifact,docs:2", "--dataset: docs comes twice: docs:2 trains on it twice as often"),
    ],
)
def test_what_names_nothing_is_refused_before_anything_is_loaded(text, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(dataset=text).check()


def test_columns_of_what_has_none_are_refused_before_anything_is_loaded():
    said = "--columns is for data sets of the hub, hf:OWNER/NAME; got --dataset docs"
    with pytest.raises(InputError, match=said):
        TrainConfig(dataset="docs,scifact:2", columns="query=question").check()
    with pytest.raises(InputError, match=said):
        evaluate(EvaluateConfig("nowhere", columns="query=question"))
    with pytest.raises(InputError, match=said):
        TripletsConfig("out.jsonl", columns="query=question")
    TrainConfig(dataset="docs,hf:some/name", columns="query=question,positive=answer").check()
