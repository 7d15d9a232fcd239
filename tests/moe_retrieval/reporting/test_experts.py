"""Heatmaps of load and likeness, and maps: each number where it belongs."""

from pathlib import Path

from moe_retrieval.reporting.experts import experts
from moe_retrieval.reporting.maps import MOST, OTHERS, maps
from moe_retrieval.reporting.part import Choice, Fold, Missing, Text
from moe_retrieval.reporting.sources import Analysis, Sources
from tests.moe_retrieval.reporting.made import analysis, comparison, system


def row(side, domain, share, count=10):
    return {"layer": "block", "side": side, "domain": domain, "count": count, "share": share}


LAYER = {"layer": "block", "routes": "texts", "experts": 2, "top_k": 1, "chosen_by": "router", "noise": False}
LOAD = [
    row("query", None, [0.25, 0.75], 1234), row("query", "pond", [0.0, 1.0]), row("document", None, [0.5, 0.5]),
]  # fmt: skip


def sources(**more):
    return Sources(Path("runs"), analyses=[Analysis("x", Path("runs/x"), analysis(**more))])


def test_a_row_of_the_heatmap_is_a_domain_and_a_column_an_expert():
    (choice,) = experts(sources(layers=[LAYER], load=LOAD)).items
    (plot,) = choice.plots
    assert (plot.name, plot.title) == ("load-x-block", "x, block: who does how much, of 2 experts")
    assert plot.rows == ["query: all (1,234)", "query: pond (10)", "document: all (10)"]
    assert plot.columns == ["expert 0", "expert 1"]
    assert plot.cells == [[0.25, 0.75], [0.0, 1.0], [0.5, 0.5]]
    assert plot.limits == (0.0, 1.0)


def test_of_several_layers_there_is_one_heatmap_of_all():
    other = {"layer": "other", "routes": "tokens", "experts": 3}
    load = [*LOAD, row("query", None, [0.5, 0.25, 0.25]) | {"layer": "other"}]
    (choice,) = experts(sources(layers=[LAYER, LAYER | other], load=load)).items
    every, first, second = choice.plots
    assert (every.name, first.name, second.name) == ("load-x-every-layer", "load-x-block", "load-x-other")
    assert every.rows == ["query: block", "document: block", "query: other"]
    assert every.columns == ["expert 0", "expert 1", "expert 2"]
    assert every.cells == [[0.25, 0.75, None], [0.5, 0.5, None], [0.5, 0.25, 0.25]]


def test_likeness_removals_terms_and_warnings():
    removal = {"layer": "block", "expert": 1, "share": 0.5, "ndcg_at_10": 0.4, "difference": -0.1, "p": None}
    found = sources(
        layers=[LAYER],
        load=LOAD,
        redundancy=[{"layer": "block", "outputs": [[1.0, -0.5], [-0.5, 1.0]], "weights": [[1.0, 0.5], [0.5, 1.0]]}],
        removal={"note": None, "experts": [removal | {"queries_changed": 3}]},
        terms=[{"layer": "block", "side": "query", "expert": 0, "terms": [{"term": "moss"}, {"term": "fern"}]}],
        findings=[{"kind": "collapse", "where": "block", "text": "collapse: 1 of 2"}],
    )
    _, alike, *others = experts(found).items
    outputs, weights = alike.plots
    assert (outputs.cells[0][1], weights.cells[0][1], outputs.is_signed) == (-0.5, 0.5, True)
    assert [item.text for item in others if isinstance(item, Text)] == ["x: collapse: 1 of 2"]
    removed, terms = [item.items[0].columns for item in others if isinstance(item, Fold)]
    assert (removed["difference"], removed["p"]) == (["-0.1000"], [""])
    assert terms["terms"] == ["moss, fern"]


def test_a_layer_of_one_expert_is_like_nothing_else():
    alone = [{"layer": "block", "outputs": [[1.0]], "weights": [[1.0]]}]
    assert len(experts(sources(layers=[LAYER], load=LOAD, redundancy=alone)).items) == 1


def test_without_an_analysis_the_command_is_named():
    runs = {"dense": [Path("r/dense-seed0")], "moe": [Path("r/moe-seed0")]}
    found = Sources(Path("r"), comparison({"dense": system(0.5), "moe": system(0.5)}), runs=runs)
    for told in (experts(found), maps(found)):
        assert isinstance(told, Missing)
        assert told.command == (
            "python -m moe_retrieval.analyze --model r/moe-seed0 --dataset docs --output-dir r/analysis"
        )
    assert isinstance(experts(sources()), Missing)  # of a model without experts
    assert isinstance(maps(sources()), Missing)  # of an older version


XY = {"x": [0.0, 1.0, 2.0, 3.0], "y": [3.0, 2.0, 1.0, 0.0]}
MAP = {
    "side": ["query", "query", "document", "document"],
    "id": ["q1", "q2", "d1", "d2"],
    "text": ["what is moss", "ferns", "Moss grows", "Fern"],
    "domain": ["wood", "pond", "pond", "pond"],
    "expert": {"block": [1, 0, 1, 10]},
    "pca": XY,
    "tsne": None,
}


def test_maps_are_coloured_by_domain_side_and_expert():
    (choice,) = maps(sources(map=MAP)).items
    assert [plot.title for plot in choice.plots] == [
        "x: PCA by domain", "x: PCA by expert of block", "x: PCA by side",
    ]  # fmt: skip
    domain, expert, side = choice.plots
    assert [(cloud.name, cloud.places) for cloud in domain.clouds] == [("pond", [1, 2, 3]), ("wood", [0])]
    assert [(cloud.name, cloud.places) for cloud in side.clouds] == [("query", [0, 1]), ("document", [2, 3])]
    assert [cloud.name for cloud in expert.clouds] == ["expert 0", "expert 1", "expert 10"]
    assert domain.labels == expert.labels
    assert domain.labels.texts[2] == "Moss grows · document"
    assert (domain.x, domain.y) == (XY["x"], XY["y"])


def test_t_sne_comes_first_where_it_is_there_and_one_colour_says_nothing():
    (choice,) = maps(sources(map=MAP | {"tsne": XY, "domain": ["(none)"] * 4, "expert": {}})).items
    assert [plot.title for plot in choice.plots] == ["x: t-SNE by side", "x: PCA by side"]


def test_the_smallest_of_many_domains_are_one():
    domains = [f"d{number}" for number in range(12) for _ in range(12 - number)]
    count = len(domains)
    found = MAP | {
        "domain": domains, "side": ["query"] * count, "text": ["t"] * count, "expert": {},
        "pca": {"x": [0.0] * count, "y": [0.0] * count},
    }  # fmt: skip
    (choice,) = maps(sources(map=found)).items
    (plot,) = choice.plots
    assert [cloud.name for cloud in plot.clouds] == [*(f"d{number}" for number in range(MOST - 1)), OTHERS]
    assert sum(len(cloud.places) for cloud in plot.clouds) == count


def test_who_is_near_whom():
    texts = [{"id": "a", "text": "moss"}, {"id": "b", "text": "fern"}]
    near = {"queries": texts, "documents": texts[::-1], "cosines": [[0.9, -0.2], [0.1, 0.8]]}
    items = maps(sources(map=MAP, nearness=near)).items
    assert all(isinstance(item, Choice) for item in items)
    (plot,) = items[1].plots
    assert (plot.rows, plot.columns) == (["moss", "fern"], ["fern", "moss"])
    assert (plot.cells, plot.limits) == (near["cosines"], (-0.2, 1.0))
    assert len(maps(sources(map=MAP, nearness={"queries": [], "documents": [], "cosines": []})).items) == 1
