"""Systems beside each other."""

from collections.abc import Mapping, Sequence

from moe_retrieval.evaluation.metrics import Measures
from moe_retrieval.evaluation.significance import randomization_test

HEADLINE = ("NDCG@10", "Recall@100", "MRR@10")


def table(rows: Mapping[str, Measures], against: str | None = None, names: Sequence[str] = HEADLINE) -> str:
    """A Markdown table, a system a row; `against` names the row that the others are tested against, on NDCG@10."""
    header = ["", *names] + ([f"p against {against}"] if against else [])
    lines = [header, ["---"] * len(header)]
    for system, measures in rows.items():
        line = [system, *(f"{measures.means[name]:.3f}" for name in names)]
        if against and system != against:
            p = randomization_test(measures.per_query["NDCG@10"], rows[against].per_query["NDCG@10"])
            line.append(f"{p:.4f}" if p >= 0.0001 else "<0.0001")
        elif against:
            line.append("")
        lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines)
