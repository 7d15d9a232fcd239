"""Plots as plotly.js draws them: its traces and its layout. Whatever depends on light or dark is left to the page."""

from collections.abc import Sequence
from functools import singledispatch
from html import escape
from typing import Any

from moe_retrieval.reporting.palette import AMOUNTS, GREY, SIGNED, color, mark
from moe_retrieval.reporting.plots import Heatmap, Line, Lines, Map, Plot, Values

MOST_WRITTEN = 16
"""Columns of a heatmap in whose cells there is room for numbers"""

WRITTEN, BARE = 46, 14
"""Least pixels of a cell, with a number in it and without"""

MOST_SHOWN = 32
"""Characters of the name of a row, a column or a cloud"""

MOST_MARKED = 60
"""Points of a line that have a mark each"""

Figure = dict[str, Any]


@singledispatch
def figure(plot: Plot) -> Figure:
    """{"data": traces, "layout": ...}; perhaps "width", the least in pixels, and "labels", the name of those from which
    a trace takes the texts of its "places"."""
    raise TypeError(f"nothing is known of how to draw a {type(plot).__name__}")


def plain(text: str) -> str:
    """plotly.js obeys a few tags in what it shows: texts are others'."""
    return escape(text, quote=False)


def _layout(height: int, x: dict[str, Any], y: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 30, "b": 8},
        "xaxis": {"automargin": True, "zeroline": False, **x},
        "yaxis": {"automargin": True, "zeroline": False, **y},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        **more,
    }


def _titled(text: str) -> dict[str, Any]:
    return {"title": {"text": plain(text)}}


@figure.register
def _(plot: Lines) -> Figure:
    x = _titled(plot.x_title) | ({"type": "log"} if plot.is_log else {})
    if plot.ticks:
        x |= {"tickvals": list(plot.ticks), "ticktext": list(map(plain, plot.ticks.values()))}
    layout = _layout(380, x, _titled(plot.y_title), hovermode="x unified" if len(plot.lines) <= 8 else "closest")
    return {"data": [_line(line) for line in plot.lines], "layout": layout}


def _line(line: Line) -> dict[str, Any]:
    trace = {
        "type": "scatter",
        "mode": "lines+markers" if len(line.x) <= MOST_MARKED else "lines",
        "name": plain(line.name),
        "x": list(line.x),
        "y": list(line.y),
        "line": {"color": color(line.color), "width": 2},
        "marker": {"symbol": mark(line.color)[0], "size": 7},
    }
    if line.spread is not None and any(line.spread):
        trace["error_y"] = {"array": list(line.spread), "thickness": 1, "color": color(line.color)}
    return trace


@figure.register
def _(plot: Values) -> Figure:
    names = [plain(each.name) for each in plot.values]
    values = [each.value for each in plot.values]
    colors = [color(each.color) for each in plot.values]
    trace: dict[str, Any] = {"x": values, "y": names, "marker": {"color": colors}}
    if plot.are_bars:
        written = [f"{each.value:,.0f}" if each.value >= 1000 else f"{each.value:.3g}" for each in plot.values]
        trace |= {"type": "bar", "orientation": "h", "text": written, "textposition": "auto"}
    else:
        trace |= {"type": "scatter", "mode": "markers", "marker": {"color": colors, "size": 11}}
        bounds = [each.interval or (each.value, each.value) for each in plot.values]
        trace["error_x"] = {
            "array": [high - each.value for each, (_, high) in zip(plot.values, bounds)],
            "arrayminus": [each.value - low for each, (low, _) in zip(plot.values, bounds)],
            "symmetric": False, "thickness": 1.5, "color": GREY,
        }  # fmt: skip
    y = {"type": "category", "autorange": "reversed"}
    layout = _layout(90 + 34 * len(names), _titled(plot.value_title), y, showlegend=False, hovermode="closest")
    return {"data": [trace], "layout": layout}


@figure.register
def _(plot: Heatmap) -> Figure:
    low, high = plot.limits
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": [list(row) for row in plot.cells],
        "x": list(range(len(plot.columns))),
        "y": list(range(len(plot.rows))),
        "customdata": [[f"{plain(row)}<br>{plain(column)}" for column in plot.columns] for row in plot.rows],
        "hovertemplate": f"%{{customdata}}<br>{plain(plot.cell_title)} %{{z:{plot.form}}}<extra></extra>",
        "zmin": low,
        "zmax": high,
        "colorscale": (SIGNED if plot.is_signed else AMOUNTS)[0],
        "colorbar": {"thickness": 10, "tickformat": plot.form, "len": 1},
        "xgap": 1,
        "ygap": 1,
    }
    if len(plot.columns) <= MOST_WRITTEN:
        trace["texttemplate"] = f"%{{z:{plot.form}}}"
    x, y = _names(plot.columns), _names(plot.rows) | {"autorange": "reversed"}
    layout = _layout(110 + 24 * len(plot.rows), x, y)
    longest = max(map(len, plot.rows), default=0)
    a_cell = WRITTEN if len(plot.columns) <= MOST_WRITTEN else BARE
    width = 120 + 6 * min(longest, MOST_SHOWN) + a_cell * len(plot.columns)
    return {"data": [trace], "layout": layout, "width": width}


def _names(names: Sequence[str]) -> dict[str, Any]:
    """By number: two may be called alike once they are shortened."""
    shown = [plain(_short(name)) for name in names]
    return {"tickvals": list(range(len(shown))), "ticktext": shown, "showgrid": False}


def _short(name: str) -> str:
    return name if len(name) <= MOST_SHOWN else f"{name[: MOST_SHOWN - 1]}…"


@figure.register
def _(plot: Map) -> Figure:
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": plain(_short(cloud.name)),
            "x": [plot.x[place] for place in cloud.places],
            "y": [plot.y[place] for place in cloud.places],
            "places": list(cloud.places),
            "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
            "marker": {"color": color(number), "symbol": mark(number)[0], "size": 6, "opacity": 0.8},
        }
        for number, cloud in enumerate(plot.clouds)
    ]
    axis = {"showticklabels": False, "showgrid": False, "showline": False, "ticks": ""}
    layout = _layout(560, axis, {**axis, "scaleanchor": "x"}, hovermode="closest")
    return {"data": traces, "layout": layout, "labels": plot.labels.name}
