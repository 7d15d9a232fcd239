"""Systems beside each other."""

from collections.abc import Mapping, Sequence

from moe_retrieval.evaluation.metrics import Measures
from moe_retrieval.evaluation.significance import confidence_interval, p_of_difference
from moe_retrieval.evaluation.stopwatch import Stopwatch

HEADLINE = ("NDCG@10", "Recall@100", "MRR@10")
TESTED = "NDCG@10"


def table(
    rows: Mapping[str, Measures],
    against: Sequence[str] = (),
    names: Sequence[str] = HEADLINE,
    watch: Stopwatch | None = None,
    more: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """A Markdown table, a system a row; `against` names the rows that all are tested against, on NDCG@10.

    A p stands only where enough queries differ to say something; `watch` adds what each system took, and `more` is
    title -> system -> cell of other columns.
    """
    columns = {"": list(rows)}
    for name in names:
        columns[name] = [f"{measures.means[name]:.3f}" for measures in rows.values()]
        if name == TESTED:
            columns["95% interval"] = [_interval(measures) for measures in rows.values()]
    for other in against:
        columns[f"p against {other}"] = [_p(measures, rows[other]) for measures in rows.values()]
    if watch:
        columns["time to rank"] = [watch.shown(system) for system in rows]
    for title, cells in (more or {}).items():
        columns[title] = [cells.get(system, "") for system in rows]
    return markdown({name: cells for name, cells in columns.items() if any(cells)})


def markdown(columns: Mapping[str, Sequence[str]]) -> str:
    """Title -> cells, as a table whose source is a table too."""
    widths = [max(3, *map(len, (name, *cells))) for name, cells in columns.items()]
    lines = [list(columns), ["---"] * len(columns), *map(list, zip(*columns.values()))]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines)


def _interval(measures: Measures) -> str:
    low, high = confidence_interval(measures.per_query[TESTED])
    return f"{low:.3f}–{high:.3f}"


def _p(measures: Measures, other: Measures) -> str:
    return shown_p(p_of_difference(measures.per_query[TESTED], other.per_query[TESTED]))


def shown_p(p: float | None) -> str:
    """
    >>> shown_p(0.03), shown_p(1e-5), shown_p(None)
    ('0.0300', '<0.0001', '')
    """
    if p is None:
        return ""
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"
