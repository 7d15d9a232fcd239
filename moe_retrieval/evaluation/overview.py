"""What systems are worth over several collections: the mean of each collection's own mean, as BEIR averages."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from moe_retrieval.evaluation.metrics import Measures
from moe_retrieval.evaluation.table import HEADLINE, TESTED, markdown


class Scored(NamedTuple):
    """What systems are worth on one collection."""

    group: str
    """As what it was asked for: the collections of one group count as one."""
    collection: str
    rows: Mapping[str, Measures]
    """By system; the same systems for all collections."""


def mean_measures(scored: Sequence[Scored], system: str) -> dict[str, float]:
    """The measures of a system: the mean over groups of the means over their collections."""
    groups: dict[str, list[dict[str, float]]] = {}
    for each in scored:
        groups.setdefault(each.group, []).append(each.rows[system].means)
    return _mean([_mean(members) for members in groups.values()])


def overview(scored: Sequence[Scored]) -> str:
    """A Markdown table, a collection a row and a system a column: NDCG@10, then the means of the headline measures."""
    systems = list(scored[0].rows)
    rows = {each.collection: [each.rows[system].means[TESTED] for system in systems] for each in scored}
    groups = {each.group: [other for other in scored if other.group == each.group] for each in scored}
    if len(groups) > 1:
        for group, members in groups.items():
            if len(members) > 1:
                rows[f"{group}, mean of {len(members)}"] = [
                    mean_measures(members, system)[TESTED] for system in systems
                ]
    averages = {system: mean_measures(scored, system) for system in systems}
    for name in HEADLINE:
        title = "mean" if name == TESTED else f"mean {name}"
        rows[f"**{title}**"] = [averages[system][name] for system in systems]
    columns = {TESTED: list(rows)}
    columns |= {system: [f"{row[place]:.3f}" for row in rows.values()] for place, system in enumerate(systems)}
    return markdown(columns)


def _mean(members: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(each[name] for each in members) / len(members) for name in members[0]}
