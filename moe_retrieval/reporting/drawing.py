"""Plots as files, PNG and SVG: for a paper, and for where nothing can be clicked."""

from functools import singledispatch
from io import BytesIO
from pathlib import Path
from typing import Any

from moe_retrieval.files import write
from moe_retrieval.reporting.palette import AMOUNTS, GREY, SIGNED, color, mark
from moe_retrieval.reporting.plots import Heatmap, Lines, Map, Plot, Values

DPI = 150

WIDTH = 7.5
"""Inches"""

MOST_WRITTEN = 12
"""Columns of a heatmap in whose cells there is room for numbers"""

MOST_NAMED = 60
"""Characters of a title or a name that are written"""

MOST_BESIDE = 32
"""Of the name of a row or column"""


def draw(plot: Plot) -> dict[str, bytes]:
    """-> "png" and "svg"; of the same plot the same bytes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, _height(plot)), layout="constrained")
    axis = figure.subplots()
    _fill(plot, axis)
    axis.set_title(_plain(plot.title), fontsize="medium")
    handles, names = axis.get_legend_handles_labels()
    if len(names) > 1:
        figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    drawn = {}
    for kind in ("png", "svg"):
        file = BytesIO()
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "moe_retrieval"}):
            nothing = {"Software": None} if kind == "png" else {"Date": None}  # that differs from call to call
            figure.savefig(file, format=kind, dpi=DPI, metadata=nothing)
        drawn[kind] = file.getvalue()
    return drawn


def save(folder: Path, plot: Plot) -> bytes:
    """-> the PNG"""
    drawn = draw(plot)
    for kind, content in drawn.items():
        write(folder / f"{plot.name}.{kind}", content)
    return drawn["png"]


def _height(plot: Plot) -> float:
    if isinstance(plot, Heatmap):
        return min(30.0, 1.5 + 0.28 * len(plot.rows))
    if isinstance(plot, Values):
        return 1.2 + 0.35 * len(plot.values)
    return 7.0 if isinstance(plot, Map) else 4.5


def _plain(text: str, most: int = MOST_NAMED) -> str:
    """A dollar sign would begin mathematics."""
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return text.replace("$", r"\$")


@singledispatch
def _fill(plot: Plot, axis: Any) -> None:
    raise TypeError(f"nothing is known of how to draw a {type(plot).__name__}")


@_fill.register
def _(plot: Lines, axis: Any) -> None:
    for line in plot.lines:
        y = [float("nan") if value is None else value for value in line.y]
        marker = mark(line.color)[1] if len(y) <= 60 else None
        axis.errorbar(
            line.x, y, yerr=line.spread, color=color(line.color), marker=marker, markersize=5, capsize=3,
            elinewidth=1, label=_plain(line.name),
        )  # fmt: skip
    if plot.is_log:
        axis.set_xscale("log")
    if plot.ticks:
        axis.set_xticks(list(plot.ticks), labels=[_plain(text) for text in plot.ticks.values()])
        axis.set_xticks([], minor=True)
    axis.set(xlabel=_plain(plot.x_title), ylabel=_plain(plot.y_title))
    axis.grid(alpha=0.25)


@_fill.register
def _(plot: Values, axis: Any) -> None:
    places = range(len(plot.values))
    for place, each in zip(places, plot.values):
        if plot.are_bars:
            axis.barh(place, each.value, color=color(each.color))
        else:
            low, high = each.interval or (each.value, each.value)
            axis.plot([low, high], [place, place], color=GREY)
            axis.plot(each.value, place, "o", color=color(each.color))
    axis.set_yticks(list(places), labels=[_plain(each.name) for each in plot.values])
    axis.invert_yaxis()
    axis.set_xlabel(_plain(plot.value_title))
    axis.grid(alpha=0.25, axis="x")


@_fill.register
def _(plot: Heatmap, axis: Any) -> None:
    low, high = plot.limits
    cells = [[float("nan") if cell is None else cell for cell in row] for row in plot.cells]
    colors = (SIGNED if plot.is_signed else AMOUNTS)[1]
    shown = axis.imshow(cells, cmap=colors, vmin=low, vmax=high, aspect="auto")
    axis.figure.colorbar(shown, ax=axis, label=_plain(plot.cell_title))
    axis.set_xticks(range(len(plot.columns)), labels=[_plain(name, MOST_BESIDE) for name in plot.columns], rotation=90)
    axis.set_yticks(range(len(plot.rows)), labels=[_plain(name, MOST_BESIDE) for name in plot.rows])
    if len(plot.columns) > MOST_WRITTEN:
        return
    for y, row in enumerate(plot.cells):
        for x, cell in enumerate(row):
            if cell is not None:
                red, green, blue, _ = shown.cmap(shown.norm(cell))
                ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
                axis.text(x, y, format(cell, plot.form), ha="center", va="center", fontsize="x-small", color=ink)


@_fill.register
def _(plot: Map, axis: Any) -> None:
    for number, cloud in enumerate(plot.clouds):
        axis.scatter(
            [plot.x[place] for place in cloud.places], [plot.y[place] for place in cloud.places], s=9, alpha=0.8,
            color=color(number), marker=mark(number)[1], linewidths=0, label=_plain(cloud.name),
        )  # fmt: skip
    axis.set(xticks=[], yticks=[])
    axis.set_aspect("equal", "datalim")
