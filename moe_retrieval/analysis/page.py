"""What was found out about a model, as a page of tables and as the few lines of a terminal."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from moe_retrieval.evaluation.table import markdown, shown_p

WIDEST = 16
"""Experts of a layer that have a column each"""

MARKUP = re.compile(r"[\\<*`\[]|(?<![^\W_])_|_(?![^\W_])")
"""Between letters an underscore is none."""

MOST_FINDINGS = 20
"""Warnings that are shown; a loss may jump a thousand times"""

Found = dict[str, Any]
Row = dict[str, Any]


def page(name: str, found: Found) -> str:
    """Markdown."""
    run = found["run"]
    title = f"# What the experts of {name} do"
    asked = f"{run['dataset']}, {run['split']} split, {run['setting']} setting: {run['queries']} queries, "
    asked += f"{run['documents']} documents. {_worth(found)}."
    sections = {
        "Layers": _layers(found),
        "Warnings": _findings(found),
        "Load": _load(found),
        "Balance over training": _balance(found) if found["layers"] else "",
        "How alike the experts are": _redundancy(found),
        "Terms that an expert attracts": _terms(found),
        "Is a sure gate right?": _confidence(found),
        "One expert removed": _removal(found["removal"]) if found["layers"] else "",
        "Domains": _domains(found),
        "Gains": _differences(found["gains"]),
        "Losses": _differences(found["losses"]),
    }
    parts = [title, asked, *(f"## {head}\n\n{body}" for head, body in sections.items() if body)]
    return "\n\n".join(parts) + "\n"


def summary(name: str, found: Found) -> str:
    """What a reader of a terminal should know."""
    lines = [f"{name} ({found['run']['variant']}): {_worth(found)}"]
    lines += [_no_experts(found)] if not found["layers"] else []
    for layer in found["layers"]:
        at_work = ", ".join(
            f"{row['effective_experts']:.1f} of {layer['experts']} for {row['side']} {layer['routes']}"
            for row in found["load"]
            if row["layer"] == layer["layer"] and row["domain"] is None
        )
        lines.append(f"{layer['layer']}: effective experts {at_work}")
    removed = found["removal"]["experts"]
    if removed:
        worst = min(removed, key=lambda row: row["difference"])
        nothing = f"nothing is lost without any one of {len(removed)} experts"
        lines.append(_most_lost(worst) if worst["difference"] < 0 else nothing)
    texts = [finding["text"] for finding in found["findings"]]
    lines += [f"warning: {text}" for text in texts[:MOST_FINDINGS]]
    return "\n".join(lines + _left_out(texts))


def _most_lost(row: Row) -> str:
    sure = f"{row['queries_changed']} queries change" if row["p"] is None else f"p {shown_p(row['p'])}"
    return f"most is lost without expert {row['expert']} of {row['layer']}: NDCG@10 {row['difference']:+.4f} ({sure})"


def _worth(found: Found) -> str:
    text, other = f"NDCG@10 {found['ndcg_at_10']:.4f}", found["against"]
    if other is None:
        return text
    p = shown_p(other["p"])
    return (
        f"{text} against {other['ndcg_at_10']:.4f} of {found['run']['against']}"
        f"{f' (p {p})' if p else ''}; {other['gained']} queries gain, {other['lost']} lose"
    )


def _no_experts(found: Found) -> str:
    return f"a {found['run']['variant']} model has no experts: no load, terms or removals to tell of"


def _left_out(texts: Sequence[str]) -> list[str]:
    more = len(texts) - MOST_FINDINGS
    return [f"and {more} warnings more, in analysis.json"] if more > 0 else []


def _table(rows: Iterable[dict[str, str]]) -> str:
    """Of rows with the same titles."""
    listed = list(rows)
    return markdown({title: [row[title] for row in listed] for title in listed[0]}) if listed else ""


def _plain(text: str) -> str:
    """As one line that is shown as it stands: of signs that would be markup, an escape makes signs again."""
    return MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def _number(value: float | None, form: str = ".3f") -> str:
    return "" if value is None else format(value, form)


# Of layers.


def _layers(found: Found) -> str:
    if not found["layers"]:
        return _no_experts(found) + "."
    return _table({title: str(row[key]) for title, key in LAYER_COLUMNS.items()} for row in found["layers"])


LAYER_COLUMNS = {"layer": "layer", "routes": "routes", "experts": "experts", "top-k": "top_k", "chosen by": "chosen_by"}


def _findings(found: Found) -> str:
    texts = [finding["text"] for finding in found["findings"]]
    return "\n".join([*(f"- {text}" for text in texts[:MOST_FINDINGS]), *_left_out(texts)])


def _load(found: Found) -> str:
    tables = []
    for layer in found["layers"]:
        rows = [row for row in found["load"] if row["layer"] == layer["layer"]]
        tables.append(f"`{layer['layer']}`\n\n{_table(_load_row(row, layer) for row in rows)}")
    return "\n\n".join(tables)


def _load_row(row: Row, layer: Row) -> dict[str, str]:
    cells = {
        "side": row["side"],
        "domain": _plain(row["domain"] or "all"),
        layer["routes"]: f"{row['count']:,}",
        "effective experts": f"{row['effective_experts']:.2f}",
        "entropy": f"{row['entropy']:.3f}",
    }
    if layer["experts"] > WIDEST:
        return cells | {"largest share": f"{max(row['share']):.1%}"}
    return cells | {f"expert {expert}": f"{share:.1%}" for expert, share in enumerate(row["share"])}


def _balance(found: Found) -> str:
    balance = found["balance"]
    if balance["note"]:
        return f"{balance['note']}."
    table = _table(_balance_rows(balance["shares"]))
    noisy = ", ".join(f"`{layer['layer']}`" for layer in found["layers"] if layer["noise"])
    if not noisy:
        return table
    return (
        f"{table}\n\nIn training noise is added to the router's scores of {noisy}; without it, as above, shares differ."
    )


def _balance_rows(shares: Sequence[Row]) -> Iterator[dict[str, str]]:
    """At most ten looks of each layer, evenly spread."""
    for layer in dict.fromkeys(row["layer"] for row in shares):
        rows = [row for row in shares if row["layer"] == layer]
        every = -(-len(rows) // 10)
        for row in rows[::-1][::every][::-1]:  # with the last
            yield {
                "layer": layer,
                "step": str(row["step"]),
                "effective experts": f"{row['effective_experts']:.2f}",
                "largest share": f"{max(row['share']):.1%}",
                "smallest share": f"{min(row['share']):.1%}",
            }


def _redundancy(found: Found) -> str:
    return _table(
        {
            "layer": row["layer"],
            "inputs": str(row["inputs"]),
            "outputs, mean cosine": _number(row["mean_output_cosine"]),
            "most alike": _closest(row["outputs"]),
            "weights, mean cosine": _number(row["mean_weight_cosine"]),
            "most alike by weights": _closest(row["weights"]),
        }
        for row in found["redundancy"]
    )


def _closest(cosines: list[list[float]]) -> str:
    pairs = [(row[b], a, b) for a, row in enumerate(cosines) for b in range(a + 1, len(row))]
    if not pairs:
        return ""
    cosine, a, b = max(pairs)
    return f"{a} and {b} ({cosine:.3f})"


def _terms(found: Found) -> str:
    return _table(
        {
            "layer": row["layer"],
            "side": row["side"],
            "expert": str(row["expert"]),
            "terms (score)": _plain(", ".join(f"{term['term']} ({term['score']:.1f})" for term in row["terms"])),
        }
        for row in found["terms"]
        if row["terms"]
    )


# Of queries.


def _confidence(found: Found) -> str:
    tables = []
    for row in found["confidence"]:
        correlation = "no rank correlation: one side is constant, or there are too few queries"
        if row["spearman"] is not None:
            correlation = f"Spearman's rank correlation with NDCG@10 {row['spearman']:+.3f} (p {shown_p(row['p'])})"
        bins = _table(
            {
                "queries": str(part["queries"]),
                "largest probability": f"{part['lowest']:.3f}–{part['highest']:.3f}",
                "NDCG@10": f"{part['ndcg_at_10']:.3f}",
            }
            for part in row["bins"]
        )
        tables.append(f"`{row['layer']}`: {correlation}\n\n{bins}")
    return "\n\n".join(tables)


def _removal(removal: Row) -> str:
    table = _table(
        {
            "layer": row["layer"],
            "expert": str(row["expert"]),
            "share of documents": f"{row['share']:.1%}",
            "NDCG@10 without": f"{row['ndcg_at_10']:.4f}",
            "difference": f"{row['difference']:+.4f}",
            "queries changed": str(row["queries_changed"]),
            "p": shown_p(row["p"]),
        }
        for row in removal["experts"]
    )
    note = f"{removal['note']}." if removal["note"] else ""
    return "\n\n".join(part for part in (table, note) if part)


def _domains(found: Found) -> str:
    return _table(
        {
            "domain": _plain(row["domain"]),
            "documents": f"{row['documents']:,}",
            "queries": f"{row['queries']:,}",
            "NDCG@10": _number(row["ndcg_at_10"]),
            "against": _number(row["against"]),
        }
        for row in found["domains"]
    )


def _differences(rows: Sequence[Row]) -> str:
    return "\n".join(_difference(row) for row in rows)


def _difference(row: Row) -> str:
    lines = [f"- **{_plain(row['text'])}** {row['difference']:+.3f} ({row['against']:.3f} to {row['ndcg_at_10']:.3f})"]
    ranks = f"rank {row['rank'] or 'none'} here, {row['against_rank'] or 'none'} there"
    for what, key in ((f"relevant ({ranks})", "relevant"), ("first here", "top"), ("first there", "against_top")):
        if row[key]:
            is_told = key != "relevant" and row[key] == row["relevant"]
            told = "the same" if is_told else f"`{row[key]['id']}` {_plain(row[key]['text'])}"
            lines.append(f"  - {what}: {told}")
    return "\n".join(lines)
