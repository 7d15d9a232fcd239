"""Where embeddings lie: maps of a sample of texts, coloured by domain and by expert; and who is near whom."""

from collections import Counter
from collections.abc import Iterator, Sequence

from moe_retrieval.reporting.experts import analysis_command
from moe_retrieval.reporting.part import Choice, Missing, Part
from moe_retrieval.reporting.plots import Cloud, Heatmap, Labels, Map, file_name
from moe_retrieval.reporting.sources import Analysis, Found, Sources

MOST = 8
"""Kinds of points that are told apart: of more, eyes could not"""

OTHERS = "others"

PROJECTIONS = {"tsne": "t-SNE", "pca": "PCA"}

NOTE = """Texts drawn evenly, each a point. PCA keeps the directions in which embeddings differ most; t-SNE keeps near
what was near, and far distances mean nothing."""
OF_NEARNESS = """Rows are queries, columns the documents that answer them, in the same order: a good model is bright on
the diagonal alone. Queries of one domain stand together."""


def maps(sources: Sources) -> Part | Missing:
    plots = [plot for analysis in sources.analyses for plot in _maps(analysis)]
    near = [plot for analysis in sources.analyses for plot in _nearness(analysis)]
    title = "Where embeddings lie"
    if not plots:
        return Missing(title, "no run was analysed, or by an older version", analysis_command(sources))
    items = [Choice("Map", plots, NOTE)]
    if near:
        items.append(Choice("Queries and their answers", near, OF_NEARNESS))
    return Part(title, items)


def _maps(analysis: Analysis) -> Iterator[Map]:
    found = analysis.found.get("map")
    if not found:
        return
    labels = Labels(analysis.label, [f"{text} · {side}" for text, side in zip(found["text"], found["side"])])
    colorings = {"domain": _clouds(found["domain"])}
    for layer, numbers in found["expert"].items():
        colorings[f"expert of {layer}"] = _clouds([f"expert {number}" for number in numbers], by_name=True)
    colorings["side"] = _clouds(found["side"])
    for projection, name in PROJECTIONS.items():
        places = found[projection]
        for coloring, clouds in colorings.items():
            if places and len(clouds) > 1:
                yield Map(
                    file_name("map", analysis.label, projection, coloring),
                    f"{analysis.label}: {name} by {coloring}", places["x"], places["y"], labels, clouds,
                )  # fmt: skip


def _clouds(names: Sequence[str], by_name: bool = False) -> list[Cloud]:
    """The points of each kind, the largest first, or in the order of the names; the smallest together as one."""
    kinds = [name for name, _ in Counter(names).most_common()]
    kept = kinds if len(kinds) <= MOST else kinds[: MOST - 1]
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name if name in kept else OTHERS, []).append(place)
    order = sorted(kept, key=lambda name: (len(name), name)) if by_name else kept
    rest = [Cloud(OTHERS, places[OTHERS])] if OTHERS in places and OTHERS not in kept else []
    return [Cloud(name, places[name]) for name in order] + rest


def _nearness(analysis: Analysis) -> Iterator[Heatmap]:
    found: Found = analysis.found.get("nearness") or {"queries": []}
    if found["queries"]:
        lowest = min(min(row) for row in found["cosines"])
        yield Heatmap(
            file_name("nearness", analysis.label),
            f"{analysis.label}: cosines of queries and documents",
            [query["text"] for query in found["queries"]],
            [document["text"] for document in found["documents"]],
            found["cosines"], "cosine", (min(0.0, lowest), 1.0),
        )  # fmt: skip
