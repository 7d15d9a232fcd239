"""One plot, drawn twice: both ways hold the same numbers, and what others wrote is shown and not obeyed."""

import io
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread

from moe_retrieval.reporting.drawing import draw, save
from moe_retrieval.reporting.interactive import figure
from moe_retrieval.reporting.palette import CLASSES, GREY, color, mark
from moe_retrieval.reporting.plots import Cloud, Heatmap, Labels, Line, Lines, Map, Value, Values

LINES = Lines(
    "curve", "a $title", "k", "Recall@k", [Line("dense <b>", 0, [1, 10], [0.25, None], [0.1, 0.0])], {1.0: "one"}, True,
)  # fmt: skip
BARS = Values("bars", "Cost", "ms", [Value("a", 2.0, 0), Value("b", 10938.4, 1)])
DOTS = Values("dots", "Result", "NDCG@10", [Value("a", 0.5, 0, (0.25, 0.625))], are_bars=False)
HEATMAP = Heatmap("heat", "Load", ["pond", "x" * 40], ["e0", "e1"], [[0.25, None], [0.0, 0.75]], "share", (0, 1), ".0%")
MAP = Map("map", "Map", [0.0, 1.0, 2.0], [2.0, 1.0, 0.0], Labels("m", ["a", "b", "c"]), [Cloud("pond", [2, 0])])
EVERY = [LINES, BARS, DOTS, HEATMAP, MAP]


def test_a_line():
    (trace,), layout = figure(LINES)["data"], figure(LINES)["layout"]
    assert (trace["x"], trace["y"], trace["error_y"]["array"]) == ([1, 10], [0.25, None], [0.1, 0.0])
    assert trace["name"] == "dense &lt;b&gt;"
    assert (layout["xaxis"]["type"], layout["xaxis"]["tickvals"], layout["xaxis"]["ticktext"]) == (
        "log",
        [1.0],
        ["one"],
    )


def test_bars_and_dots():
    (trace,) = figure(BARS)["data"]
    assert (trace["type"], trace["x"], trace["y"]) == ("bar", [2.0, 10938.4], ["a", "b"])
    assert trace["text"] == ["2", "10,938"]
    (trace,) = figure(DOTS)["data"]
    assert (trace["x"], trace["error_x"]["array"], trace["error_x"]["arrayminus"]) == ([0.5], [0.125], [0.25])


def test_a_heatmap():
    (trace,) = figure(HEATMAP)["data"]
    assert trace["z"] == [[0.25, None], [0.0, 0.75]]
    assert (trace["zmin"], trace["zmax"]) == (0, 1)
    assert trace["customdata"][1][0] == f"{'x' * 40}<br>e0"
    assert figure(HEATMAP)["layout"]["yaxis"]["ticktext"] == ["pond", "x" * 31 + "…"]


def test_a_map_names_its_labels():
    found = figure(MAP)
    (trace,) = found["data"]
    assert (trace["x"], trace["y"], trace["places"], found["labels"]) == ([2.0, 0.0], [0.0, 2.0], [2, 0], "m")


def test_colours_and_marks_together_are_many():
    assert len({(color(place), mark(place)) for place in range(40)}) == 40
    assert color(-1) == color(-2) == GREY
    assert GREY not in CLASSES
    assert mark(-1) != mark(-2)


@pytest.mark.parametrize("plot", EVERY, ids=lambda plot: plot.name)
def test_each_is_a_picture_that_says_what_it_is(plot):
    drawn = draw(plot)
    pixels = imread(io.BytesIO(drawn["png"]))
    assert pixels.shape[1] == 1125
    assert np.ptp(pixels[..., :3]) > 0.5
    words = "".join(ElementTree.fromstring(drawn["svg"]).itertext())
    assert plot.title in words


def test_the_words_of_a_picture_are_those_of_the_plot():
    for plot, expected in ((LINES, ("one", "Recall@k")), (BARS, ("ms", "a", "b")), (HEATMAP, ("pond", "25%", "e1"))):
        words = "".join(ElementTree.fromstring(draw(plot)["svg"]).itertext())
        assert all(word in words for word in expected), plot.name


def test_the_same_again_is_the_same_file(tmp_path):
    assert draw(MAP) == draw(MAP)
    png = save(tmp_path, MAP)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.png", "map.svg"]
    assert (tmp_path / "map.png").read_bytes() == png
