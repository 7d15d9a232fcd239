"""One setting over several values: what each variant that has it is worth at each of them."""

from collections.abc import Iterator

from moe_retrieval.bounds import flag
from moe_retrieval.evaluation.figure import are_wide, places_of, shown_value
from moe_retrieval.evaluation.page import OF_SWEEP, SHOWN
from moe_retrieval.evaluation.table import HEADLINE, shown_p
from moe_retrieval.reporting.costs import shown_cost
from moe_retrieval.reporting.part import Choice, Missing, Part, Table, Text
from moe_retrieval.reporting.plots import Line, Lines, file_name
from moe_retrieval.reporting.result import shown
from moe_retrieval.reporting.sources import Found, Sources


def sweep(sources: Sources) -> Part | Missing:
    if sources.comparison is None or "sweep" not in sources.comparison:
        return Missing(
            "Sweep", "no setting was swept", "python -m moe_retrieval.compare --sweep num-experts=2,4,6,8,12"
        )
    swept = sources.comparison["sweep"]
    name = flag(swept["setting"]).removeprefix("--")
    plots, rows = list(_plots(sources, name, swept["systems"])), _table(sources, name, swept["systems"])
    return Part(f"By {name}", [Choice("Measure", plots), Table(rows), Text(OF_SWEEP)])


def _plots(sources: Sources, name: str, systems: dict[str, list[Found]]) -> Iterator[Lines]:
    """Of those that were not swept, a level from the first value to the last."""
    assert sources.comparison is not None
    split, colors = sources.split, sources.colors()
    places = places_of([point["value"] for points in systems.values() for point in points])
    where = sorted(places.values())
    for measure in HEADLINE:
        lines = []
        for variant, system in sources.comparison["systems"].items():
            if variant in systems:
                points = sorted(systems[variant], key=lambda point: places[point["value"]])
                at = [point["measures"][split][measure] for point in points]
                lines.append(
                    Line(
                        variant, colors[variant], [places[point["value"]] for point in points],
                        [found["mean"] for found in at], [found["spread"] or 0.0 for found in at],
                    )
                )  # fmt: skip
            elif system["seeds"]:  # others may be so far below that nothing could be told apart
                level = system["measures"][split][measure]["mean"]
                lines.append(Line(f"{variant} (without {name})", colors[variant], where, [level] * len(where)))
        ticks = {place: shown_value(value) for value, place in places.items()}
        title = f"{measure} by {name}"
        yield Lines(file_name("sweep", measure), title, name, measure, lines, ticks, are_wide(places))


def _table(sources: Sources, name: str, systems: dict[str, list[Found]]) -> dict[str, list[str]]:
    rows = [(variant, point) for variant, points in systems.items() for point in points]
    columns = {"": [variant for variant, _ in rows], name: [str(point["value"]) for _, point in rows]}
    for measure in HEADLINE:
        columns[measure] = [shown(point["measures"][sources.split][measure]) for _, point in rows]
    for other in dict.fromkeys(other for _, point in rows for other in point["p_against"]):
        columns[f"p against {other}"] = [shown_p(point["p_against"].get(other)) for _, point in rows]
    for cost in ("parameters", "active", "training_seconds", "documents_per_second"):
        columns[SHOWN[cost][0]] = [shown_cost(point, cost) for _, point in rows]
    return columns
