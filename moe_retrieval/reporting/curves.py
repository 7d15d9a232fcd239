"""How much is found by how far down one looks: each measure over the cuts of a ranking."""

from collections.abc import Iterator

from moe_retrieval.evaluation.findings import FIT
from moe_retrieval.reporting.part import Choice, Missing, Part
from moe_retrieval.reporting.plots import Line, Lines, file_name
from moe_retrieval.reporting.sources import Sources

DRAWN = ("Recall", "NDCG", "MRR", "MAP", "P")
"""The measures that are known at several cuts, in the order of the choice"""


def curves(sources: Sources) -> Part | Missing:
    title = "By how far down one looks"
    if sources.comparison is None:
        return Missing(title, "nothing was compared", "python -m moe_retrieval.compare")
    note = f"Behind the {FIT} split is how well models fit what they were trained on, and not how good they are."
    has_fit = FIT in sources.comparison["queries"]
    return Part(title, [Choice("Measure", list(_plots(sources)), note if has_fit else "")])


def _plots(sources: Sources) -> Iterator[Lines]:
    assert sources.comparison is not None
    colors = sources.colors()
    for split in sources.comparison["queries"]:
        for measure in DRAWN:
            lines = []
            for name, system in sources.comparison["systems"].items():
                at = _by_cut(system["measures"][split], measure)
                spreads = [found["spread"] or 0.0 for found in at.values()]
                lines.append(Line(name, colors[name], list(at), [found["mean"] for found in at.values()], spreads))
            ticks = {float(cut): str(cut) for line in lines for cut in line.x}
            title = f"{measure}@k, {split} split"
            yield Lines(file_name("curve", measure, split), title, "k", f"{measure}@k", lines, ticks, is_log=True)


def _by_cut(measures: dict[str, dict], measure: str) -> dict[int, dict]:
    named = (name.split("@") for name in measures)
    cuts = sorted(int(cut) for name, cut in named if name == measure)
    return {cut: measures[f"{measure}@{cut}"] for cut in cuts}
