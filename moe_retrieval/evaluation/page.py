"""The page of a comparison, in Markdown: first the few figures that matter, then all others."""

import textwrap
from collections.abc import Callable, Sequence

import numpy as np

from moe_retrieval.evaluation.findings import FIT, Findings
from moe_retrieval.evaluation.systems import System, spread
from moe_retrieval.evaluation.table import TESTED, markdown, shown_p, table
from moe_retrieval.progress import clock

EVERY = (
    "NDCG@10", "Recall@1", "Recall@5", "Recall@10", "Recall@100", "MRR@10", "P@1", "P@5", "P@10", "MAP@1000",
)  # fmt: skip

FIGURE = "sweep"
"""Of sweep.png and sweep.svg, beside the page"""


def _millions(count: float) -> str:
    return f"{count / 1e6:.1f}M"


SHOWN: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", _millions),
    "active": ("active", _millions),
    "steps": ("steps", "{:,.0f}".format),
    "training_seconds": ("training time", clock),
    "peak_bytes": ("peak memory", lambda size: f"{size / 1e9:.2f} GB"),
    "documents_per_second": ("documents/s", "{:,.0f}".format),
    "query_ms": ("query, ms", "{:.1f}".format),
}
"""Costs -> their titles, and how they are written"""


SPREAD = "Behind ± is the standard deviation over seeds, where there are several."
OF_SWEEP = """p is against the model with the same value, where there is one. Where a variant has a value anyway, its
row is that of the first table."""
OF_FIT = """of its queries, which were trained on, but for those that validation held out, or that --train-queries left
out. This is how well the models fit what they have seen, and not how good they are: of some published tables it is all
that they show."""
OF_COSTS = """Training time is that of the steps with their validations, peak memory that of the process that took them.
documents/s and query, from one question to its embedding, were measured once a model, beside whatever else ran."""
WHERE_ALL_IS = "All of this, and what is not shown, is in [comparison.json](comparison.json)."


def page(findings: Findings, title: str, notes: str, command: str) -> str:
    sections = [f"# {title}", headline(findings), paragraph(notes), f"`{command}`"]
    if findings.swept:
        sections += _swept(findings)
    sections += ["## All measures", _every_measure(findings, findings.split), paragraph(SPREAD)]
    if FIT in findings.splits:
        asked = len(findings.collection.qrels(FIT))
        sections += [f"## Fit: the {FIT} split", paragraph(f"{asked} {OF_FIT}"), _every_measure(findings, FIT)]
    if findings.domains():
        sections += ["## By domain", f"{TESTED} on the {findings.split} split.", _by_domain(findings)]
    sections += ["## Costs", _costs(findings), paragraph(f"{OF_COSTS} {WHERE_ALL_IS}")]
    return "\n\n".join(sections) + "\n"


def paragraph(text: str) -> str:
    return "\n".join(textwrap.wrap(" ".join(text.split()), 120))


def _swept(findings: Findings) -> list[str]:
    name = findings.swept_flag
    curve = f"![{TESTED} by {name}]({FIGURE}.png)"
    return [f"## By {name}", curve, _sweep(findings), f"{paragraph(OF_SWEEP)} The curve as [SVG]({FIGURE}.svg)."]


def headline(findings: Findings) -> str:
    rows, split = findings.rows, findings.split
    others = dict.fromkeys(other for row in rows.values() for other in row.p)
    columns = {
        f"p against {other}": {name: shown_p(row.p.get(other)) for name, row in rows.items()} for other in others
    }
    columns[f"{TESTED} by seed"] = {
        name: ", ".join(f"{value:.3f}" for value in row.system.by_seed(split, TESTED))
        for name, row in rows.items()
        if len(row.system.seeds) > 1
    }
    for cost in ("parameters", "active"):
        columns[cost] = {name: _cost(row.system, cost) for name, row in rows.items()}
    return table({name: row.system.mean(split) for name, row in rows.items()}, more=columns)


def _every_measure(findings: Findings, split: str) -> str:
    columns: dict[str, Sequence[str]] = {"": list(findings.rows)}
    for name in EVERY:
        columns[name] = [_over_seeds(row.system.by_seed(split, name)) for row in findings.rows.values()]
    return markdown(columns)


def _by_domain(findings: Findings) -> str:
    domains = findings.domains()
    columns: dict[str, Sequence[str]] = {
        "": list(domains),
        "queries": [str(len(places)) for places in domains.values()],
    }
    for name, row in findings.rows.items():
        columns[name] = [
            _over_seeds(row.system.by_seed_at(findings.split, TESTED, places)) for places in domains.values()
        ]
    return markdown(columns)


def _costs(findings: Findings) -> str:
    rows = {name: row for name, row in findings.rows.items() if row.system.cost("parameters")}
    columns: dict[str, Sequence[str]] = {"": list(rows)}
    for cost, (title, _) in SHOWN.items():
        columns[title] = [_cost(row.system, cost) for row in rows.values()]
    return markdown(columns)


def _sweep(findings: Findings) -> str:
    points = [(name, value, row) for name, found in findings.swept.items() for value, row in found.items()]
    columns: dict[str, Sequence[str]] = {
        "": [name for name, _, _ in points],
        findings.swept_flag: [str(value) for _, value, _ in points],
    }
    for name in ("NDCG@10", "Recall@100", "MRR@10"):
        columns[name] = [_over_seeds(row.system.by_seed(findings.split, name)) for _, _, row in points]
    for other in dict.fromkeys(other for _, _, row in points for other in row.p):
        columns[f"p against {other}"] = [shown_p(row.p.get(other)) for _, _, row in points]
    for cost in ("parameters", "active", "training_seconds", "documents_per_second"):
        columns[SHOWN[cost][0]] = [_cost(row.system, cost) for _, _, row in points]
    return markdown(columns)


def _over_seeds(values: Sequence[float]) -> str:
    deviation = spread(values)
    return f"{np.mean(values):.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")


def _cost(system: System, name: str) -> str:
    cost = system.cost(name)
    return "" if cost is None else SHOWN[name][1](cost)
