"""What each system costs to train and to use, as bars: as far as it was measured."""

from collections.abc import Iterator

from moe_retrieval.evaluation.page import OF_COSTS, SHOWN
from moe_retrieval.reporting.part import Choice, Missing, Part, Table, Text
from moe_retrieval.reporting.plots import Value, Values, file_name
from moe_retrieval.reporting.sources import Found, Sources

BARS = {
    "query_ms": ("Latency: from one question to its embedding", "ms", 1),
    "documents_per_second": ("Encoding", "documents a second", 1),
    "peak_bytes": ("Peak memory of training", "GB", 1e9),
    "training_seconds": ("Training time", "minutes", 60),
    "parameters": ("Parameters", "millions", 1e6),
    "active": ("Active parameters", "millions", 1e6),
}
"""Costs -> their titles, and what they are told in"""


def costs(sources: Sources) -> Part | Missing:
    if sources.comparison is None:
        return Missing("Costs", "nothing was compared", "python -m moe_retrieval.compare")
    systems = {name: system for name, system in sources.comparison["systems"].items() if system["costs"]}
    plots = list(_plots(systems, sources.colors()))
    if not plots:
        return Missing(
            "Costs", "nothing of what was compared is a model, with a cost", "python -m moe_retrieval.compare"
        )
    columns = {"": list(systems)}
    columns |= {title: [shown_cost(system, name) for system in systems.values()] for name, (title, _) in SHOWN.items()}
    return Part("Costs", [Choice("Cost", plots), Table(columns), Text(OF_COSTS)])


def shown_cost(system: Found, name: str) -> str:
    return SHOWN[name][1](system["costs"][name]) if name in system["costs"] else ""


def _plots(systems: dict[str, Found], colors: dict[str, int]) -> Iterator[Values]:
    for cost, (title, unit, size) in BARS.items():
        values = [
            Value(name, system["costs"][cost] / size, colors[name])
            for name, system in systems.items()
            if cost in system["costs"]
        ]
        if values:
            yield Values(file_name("cost", cost), title, unit, values)
