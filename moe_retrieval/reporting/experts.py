"""What the experts of the analysed runs do: who does how much, for whom; how alike they are; what each is worth."""

import shlex
from collections.abc import Iterator

from moe_retrieval.evaluation.table import shown_p
from moe_retrieval.reporting.part import Choice, Fold, Item, Missing, Part, Table, Text
from moe_retrieval.reporting.plots import Heatmap, file_name
from moe_retrieval.reporting.sources import Analysis, Found, Sources

OF_LOAD = """The share of each expert in what a layer does, for queries and for documents, by domain. A row of equal
colours is a layer that makes no difference between its experts."""
OF_LIKENESS = """Cosines between what two experts make of the same inputs, and between their weights: near 1 they are
one expert twice."""


def analysis_command(sources: Sources) -> str:
    """That of the run here that has experts, as far as one can see."""
    of_experts = [runs[0] for name, runs in sources.runs.items() if name not in ("dense", "dense-wide")]
    model = of_experts[-1] if of_experts else sources.folder
    dataset = str(sources.flags().get("dataset", "docs"))
    flags = ["--model", str(model), "--dataset", dataset, "--output-dir", str(sources.folder / "analysis")]
    return shlex.join(["python", "-m", "moe_retrieval.analyze", *flags])


def experts(sources: Sources) -> Part | Missing:
    title = "What the experts do"
    with_experts = [analysis for analysis in sources.analyses if analysis.found["layers"]]
    if not with_experts:
        return Missing(title, "no run with experts was analysed", analysis_command(sources))
    items: list[Item] = []
    loads = [plot for analysis in with_experts for plot in _loads(analysis)]
    items.append(Choice("Layer", loads, OF_LOAD))
    likenesses = [plot for analysis in with_experts for plot in _likenesses(analysis)]
    if likenesses:
        items.append(Choice("How alike the experts are", likenesses, OF_LIKENESS))
    for analysis in with_experts:
        items += _tables(analysis)
    return Part(title, items)


def _loads(analysis: Analysis) -> Iterator[Heatmap]:
    """All layers at once, where there are several; then each, by side and domain."""
    label, found = analysis.label, analysis.found
    if len(found["layers"]) > 1:
        rows = {f"{row['side']}: {row['layer']}": row["share"] for row in found["load"] if row["domain"] is None}
        yield _shares(file_name("load", label, "every layer"), f"{label}: every layer", rows)
    for layer in found["layers"]:
        rows = {
            f"{row['side']}: {row['domain'] or 'all'} ({row['count']:,})": row["share"]
            for row in found["load"]
            if row["layer"] == layer["layer"]
        }
        title = f"{label}, {layer['layer']}: who does how much, of {layer['experts']} experts"
        yield _shares(file_name("load", label, layer["layer"]), title, rows)


def _shares(name: str, title: str, rows: dict[str, list[float]]) -> Heatmap:
    """Of layers with fewer experts than others, nothing stands for the rest."""
    most = max(map(len, rows.values()))
    cells = [[*share, *[None] * (most - len(share))] for share in rows.values()]
    columns = [f"expert {expert}" for expert in range(most)]
    highest = max(max(share) for share in rows.values())
    return Heatmap(name, title, list(rows), columns, cells, "share", (0.0, highest), ".0%")


def _likenesses(analysis: Analysis) -> Iterator[Heatmap]:
    for row in analysis.found["redundancy"]:
        if len(row["outputs"]) < 2:
            continue
        for what, cosines in (("outputs", row["outputs"]), ("weights", row["weights"])):
            names = [f"expert {expert}" for expert in range(len(cosines))]
            yield Heatmap(
                file_name("alike", analysis.label, row["layer"], what),
                f"{analysis.label}, {row['layer']}: {what} of the experts",
                names, names, cosines, "cosine", (-1.0, 1.0), ".2f", is_signed=True,
            )  # fmt: skip


def _tables(analysis: Analysis) -> Iterator[Item]:
    label, found = analysis.label, analysis.found
    for finding in found["findings"][:5]:
        yield Text(f"{label}: {finding['text']}")
    if found["removal"]["experts"]:
        yield Fold(f"{label}: one expert removed", [Table(_removals(found))])
    if any(row["terms"] for row in found.get("terms", [])):
        yield Fold(f"{label}: terms that an expert attracts", [Table(_terms(found))])


def _removals(found: Found) -> dict[str, list[str]]:
    rows = found["removal"]["experts"]
    return {
        "": [f"{row['layer']}, expert {row['expert']}" for row in rows],
        "share of documents": [f"{row['share']:.1%}" for row in rows],
        "NDCG@10 without": [f"{row['ndcg_at_10']:.4f}" for row in rows],
        "difference": [f"{row['difference']:+.4f}" for row in rows],
        "queries changed": [str(row["queries_changed"]) for row in rows],
        "p": [shown_p(row["p"]) for row in rows],
    }


def _terms(found: Found) -> dict[str, list[str]]:
    rows = [row for row in found["terms"] if row["terms"]]
    return {
        "": [f"{row['layer']}, expert {row['expert']}" for row in rows],
        "side": [row["side"] for row in rows],
        "terms": [", ".join(term["term"] for term in row["terms"]) for row in rows],
    }
