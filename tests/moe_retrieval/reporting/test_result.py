"""The sentence that opens the page, and its tables."""

import pytest

from moe_retrieval.reporting.costs import costs
from moe_retrieval.reporting.part import Fold, Lead, Missing, Table, Text
from moe_retrieval.reporting.result import result, verdict
from moe_retrieval.reporting.sources import Analysis, Sources
from tests.moe_retrieval.reporting.made import analysis, comparison, system

DENSE = {"BM25": system(0.2, {"dense": 1e-5, "dense-wide": 1e-5}, seeds=()), "dense": system(0.5, {"dense-wide": 0.5})}
DENSE["dense-wide"] = system(0.51, {"dense": 0.5})


def both(p, q):
    return {"dense": p, "dense-wide": q}


@pytest.mark.parametrize(
    "ndcg, p, first",
    [
        (0.6, both(0.01, 0.02), "Better than dense and dense-wide, with p < 0.05: moe."),
        (0.6, both(0.01, 0.05), "Nothing is better than dense and dense-wide with p < 0.05."),
        (0.6, both(0.01, None), "Nothing is better than dense and dense-wide with p < 0.05."),
        (0.505, both(0.01, 0.01), "Nothing is better than dense and dense-wide with p < 0.05."),  # below dense-wide
    ],
)
def test_only_what_is_surely_above_both_is_called_better(ndcg, p, first):
    assert verdict(DENSE | {"moe": system(ndcg, p)}, "test")[0] == first


def test_each_variant_is_told_with_its_differences():
    told = verdict(DENSE | {"random": system(0.4, both(1e-6, 1e-6)), "moe": system(0.52, both(0.03, None))}, "test")
    assert told[1:] == [
        "moe: NDCG@10 0.520, +0.0200 against dense (p 0.0300), +0.0100 against dense-wide (too few queries differ to "
        "test).",
        "random: NDCG@10 0.400, -0.1000 against dense (p <0.0001), -0.1100 against dense-wide (p <0.0001).",
    ]


def test_of_two_kinds_of_experts_all_controls_are_named():
    names = ("dense", "dense-wide of sb-moe", "dense-wide of moe")
    systems = {name: system(0.5) for name in names} | {"random of moe": system(0.5, {"dense": 0.3})}
    told = verdict(systems | {"moe": system(0.6, dict.fromkeys(names, 0.001))}, "test")
    assert told[0] == "Better than dense, dense-wide of sb-moe and dense-wide of moe, with p < 0.05: moe."
    assert [sentence.split(":")[0] for sentence in told[1:]] == ["moe", "random of moe"]


def test_where_nothing_can_be_tested_the_highest_is_named():
    assert verdict({"BM25": system(0.6, seeds=()), "moe": system(0.5)}, "test") == [
        "BM25 has the highest NDCG@10: 0.600."
    ]
    assert verdict({"dense": system(0.5)}, "test") == ["dense has the highest NDCG@10: 0.500."]


def test_the_tables(tmp_path):
    systems = DENSE | {"moe": system(0.52, both(0.03, 0.2), (0, 1), spread=0.01, costs={"parameters": 22.5e6})}
    domains = {"pond": 9, "wood": 7}
    for each in systems.values():
        each["by_domain"] = {name: {"NDCG@10": {"mean": 0.3, "spread": None}} for name in domains}
    part = result(Sources(tmp_path, comparison(systems, domains=domains)))
    lead, *_ = part.items
    assert isinstance(lead, Lead)
    table = next(item for item in part.items if isinstance(item, Table)).columns
    assert table[""] == ["BM25", "dense", "dense-wide", "moe"]
    assert table["NDCG@10"][3] == "0.520 ± 0.010"
    assert table["95% interval"][3] == "0.500–0.550"
    assert table["p against dense"] == ["<0.0001", "", "0.5000", "0.0300"]
    assert table["NDCG@10 by seed"] == ["", "", "", "0.520, 0.520"]
    assert table["parameters"] == ["", "", "", "22.5M"]
    folds = {item.title: item.items for item in part.items if isinstance(item, Fold)}
    assert list(folds) == ["All measures", "By domain"]
    (_, by_domain) = folds["By domain"]
    assert by_domain.columns["queries"] == ["9", "7"]
    assert by_domain.columns["moe"] == ["0.300", "0.300"]


def test_the_fit_is_told_apart(tmp_path):
    systems = {"dense": system(0.5)}
    systems["dense"]["measures"]["train"] = systems["dense"]["measures"]["test"]
    found = comparison(systems, queries={"test": 16, "train": 50})
    folds = [item for item in result(Sources(tmp_path, found)).items if isinstance(item, Fold)]
    assert [fold.title for fold in folds] == ["All measures", "Fit: the train split"]
    assert isinstance(folds[1].items[0], Text)
    assert folds[1].items[0].text.startswith("50 of its queries")


def test_a_single_evaluation_and_several_data_sets(tmp_path):
    one = {"NDCG@10": 0.5, "Recall@100": 0.9, "run": {"dataset": "docs"}}
    lead, table = result(Sources(tmp_path, metrics=one)).items
    assert lead.text == "NDCG@10 0.500 on docs."
    assert table.columns == {"": ["docs"], "NDCG@10": ["0.500"], "Recall@100": ["0.900"]}
    several = {"NDCG@10": 0.4, "run": {"datasets": {"a": {"NDCG@10": 0.3}, "b": {"NDCG@10": 0.5}}}}
    lead, table = result(Sources(tmp_path, metrics=several)).items
    assert lead.text == "NDCG@10 0.400 on a, b."
    assert table.columns == {"": ["a", "b", "mean"], "NDCG@10": ["0.300", "0.500", "0.400"]}


def test_analyses_alone(tmp_path):
    against = {"ndcg_at_10": 0.4, "p": 0.04}
    found = [Analysis("x", tmp_path, analysis(against=against)), Analysis("y", tmp_path, analysis())]
    (table,) = result(Sources(tmp_path, analyses=found)).items
    assert table.columns["of the other model"] == ["0.400", ""]
    assert table.columns["p"] == ["0.0400", ""]


def test_costs_are_bars_as_far_as_they_were_measured(tmp_path):
    systems = {"BM25": system(0.2, seeds=()), "dense": system(0.5, costs={"query_ms": 4.0, "peak_bytes": 2e9})}
    part = costs(Sources(tmp_path, comparison(systems)))
    choice, table, _ = part.items
    assert [(plot.name, [(bar.name, bar.value) for bar in plot.values]) for plot in choice.plots] == [
        ("cost-query-ms", [("dense", 4.0)]),
        ("cost-peak-bytes", [("dense", 2.0)]),
    ]
    assert table.columns["peak memory"] == ["2.00 GB"]
    assert isinstance(costs(Sources(tmp_path, comparison({"BM25": system(0.2)}))), Missing)
    assert costs(Sources(tmp_path)).command == "python -m moe_retrieval.compare"
