"""The curve of a sweep, as PNG and SVG."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from moe_retrieval.evaluation.findings import Findings
from moe_retrieval.evaluation.page import FIGURE
from moe_retrieval.evaluation.systems import spread
from moe_retrieval.evaluation.table import TESTED
from moe_retrieval.files import write

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which people who see few colours can tell apart; markers differ too."""
MARKERS = "osD^vPX"

WIDE = 50
"""Largest value over smallest from which on an axis is logarithmic: of learning rates, say"""


def draw_sweep(folder: Path, findings: Findings) -> None:
    """sweep.png and sweep.svg: a curve for each variant that was swept, a level for each that was not."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axis = figure.subplots()
    places = places_of([value for by_value in findings.swept.values() for value in by_value])
    for number, (name, by_value) in enumerate(findings.swept.items()):
        in_order = sorted(by_value, key=lambda value: places[value])
        values = [by_value[value].system.by_seed(findings.split, TESTED) for value in in_order]
        axis.errorbar(
            [places[value] for value in in_order],
            [float(np.mean(seeds)) for seeds in values],
            yerr=[spread(seeds) or 0.0 for seeds in values],
            color=COLORS[number % len(COLORS)], marker=MARKERS[number % len(MARKERS)], capsize=3, elinewidth=1,
            label=name,
        )  # fmt: skip
    for number, (name, level) in enumerate(_levels(findings).items()):
        axis.axhline(level, color="#555555", linewidth=1, linestyle=("--", ":", "-.")[number % 3], label=name)
    _label_values(axis, places)
    axis.set(xlabel=findings.swept_flag, ylabel=f"{TESTED}, {findings.collection.name}, {findings.split} split")
    axis.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    for kind in ("png", "svg"):
        drawn = BytesIO()
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "moe_retrieval"}):
            nothing = {"Software": None} if kind == "png" else {"Date": None}  # that differs from call to call
            figure.savefig(drawn, format=kind, dpi=150, metadata=nothing)
        write(folder / f"{FIGURE}.{kind}", drawn.getvalue())


def _levels(findings: Findings) -> dict[str, float]:
    """Of what was trained: what was not may be so far below that nothing else could be told apart."""
    trained = {name: row.system for name, row in findings.rows.items() if row.system.seeds}
    others = {name: system for name, system in trained.items() if name not in findings.swept}
    return {name: system.mean(findings.split).means[TESTED] for name, system in others.items()}


def places_of(values: Sequence[Any]) -> Mapping[Any, float]:
    """Where each value stands: numbers where they are, others one after the other."""
    known = list(dict.fromkeys(values))
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return {value: float(value) for value in known}
    return {value: float(place) for place, value in enumerate(known)}


def _label_values(axis: Any, places: Mapping[Any, float]) -> None:
    """At the values alone, which are what was measured."""
    if are_wide(places):
        axis.set_xscale("log")
    axis.set_xticks(list(places.values()), labels=[shown_value(value) for value in places])
    axis.set_xticks([], minor=True)


def are_wide(places: Mapping[Any, float]) -> bool:
    where = places.values()
    return min(where) > 0 and max(where) >= WIDE * min(where)


def shown_value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
