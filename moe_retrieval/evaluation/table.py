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
        columns[f"p against {other}"] = [shown_p(p_of(measures, rows[other])) for measures in rows.values()]
    if watch:
        columns["time to rank"] = [watch.shown(system) for system in rows]
    for title, cells in (more or {}).items():
        columns[title] = [cells.get(system, "") for system in rows]
    return markdown(columns)


def markdown(columns: Mapping[str, Sequence[str]]) -> str:
    """Columns by title, of cells; a column that is empty is left out.

    >>> print(markdown({"": ["a", "b"], "of no use": ["", ""], "value": ["1", "10"]}))
    |     | value |
    | --- | ---   |
    | a   | 1     |
    | b   | 10    |
    """
    filled = {title: [_in_a_cell(cell) for cell in cells] for title, cells in columns.items() if any(cells)}
    widths = [max(3, *map(len, (title, *cells))) for title, cells in filled.items()]
    lines = [list(filled), ["---"] * len(filled), *map(list, zip(*filled.values()))]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines)


def _in_a_cell(text: str) -> str:
    """A name that others gave must not end its cell, or its line."""
    return " ".join(text.split()).replace("|", "\\|")


def _interval(measures: Measures) -> str:
    low, high = confidence_interval(measures.per_query[TESTED])
    return f"{low:.3f}–{high:.3f}"


def p_of(measures: Measures, other: Measures) -> float | None:
    """Of the difference on NDCG@10; none where too few queries differ."""
    return p_of_difference(measures.per_query[TESTED], other.per_query[TESTED])


def shown_p(p: float | None) -> str:
    """
    >>> shown_p(0.03), shown_p(1e-5), shown_p(None)
    ('0.0300', '<0.0001', '')
    """
    if p is None:
        return ""
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"
