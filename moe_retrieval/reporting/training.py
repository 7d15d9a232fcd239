"""What the runs went through: loss, validations, and how their experts shared the work."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from moe_retrieval.analysis.history import describe_balance, read_log
from moe_retrieval.reporting.part import Choice, Missing, Part, Text
from moe_retrieval.reporting.plots import Line, Lines, file_name
from moe_retrieval.reporting.sources import Found, Sources, finite

MOST = 400
"""Points of a line: of more steps, the mean of as many as stand together"""

FIRST = "Of each variant, the run of its first seed."


def training(sources: Sources) -> Part | Missing:
    title = "Training"
    logs = {name: read_log(runs[0]) for name, runs in sources.runs.items()}
    colors = sources.colors()
    plots = [plot for plot in (_losses(logs, colors), _validations(logs, colors)) if plot.lines]
    if not plots:
        return Missing(title, f"there is no log of a training in {sources.folder}", "python -m moe_retrieval.compare")
    return Part(title, [Choice("Curve", plots), Text(FIRST)])


def balance(sources: Sources) -> Part | Missing:
    """The shares of the slots at each look at the gate."""
    title = "Balance over training"
    plots = [plot for name, runs in sources.runs.items() for plot in _of_run(name, runs[0])]
    if not plots:
        why = "no run here has experts whose shares were noted: that is done every 20 steps"
        return Missing(title, why, "python -m moe_retrieval.compare --variants dense,sb-moe")
    note = "What each expert had of the recent tokens (after the pooling, of the texts); noise in the gate included."
    return Part(title, [Choice("Layer", plots, f"{note} {FIRST}")])


def _losses(logs: dict[str, list[Found]], colors: dict[str, int]) -> Lines:
    lines = []
    for name, events in logs.items():
        points = [(event["step"], finite(event["loss"])) for event in events if "loss" in event]
        if points:
            steps, losses = zip(*points)
            lines.append(Line(name, colors[name], *_thinned(steps, losses)))
    return Lines("training-loss", "Loss", "step", "loss", lines)


def _validations(logs: dict[str, list[Found]], colors: dict[str, int]) -> Lines:
    lines = []
    for name, events in logs.items():
        points = [(event["step"], finite(event["ndcg_at_10"])) for event in events if "ndcg_at_10" in event]
        if points:
            steps, scores = zip(*points)
            lines.append(Line(name, colors[name], steps, scores))
    return Lines("training-validation", "NDCG@10 of the validations", "step", "NDCG@10, held-out queries", lines)


def _thinned(steps: Sequence[int], values: Sequence[float | None]) -> tuple[list[float], list[float | None]]:
    """
    >>> _thinned([1, 2, 3], [0.5, None, 0.25])
    ([1, 2, 3], [0.5, None, 0.25])
    """
    together = -(-len(steps) // MOST)
    if together == 1:
        return list(steps), list(values)
    places, means = [], []
    for start in range(0, len(steps), together):
        known = [value for value in values[start : start + together] if value is not None]
        places.append(float(steps[min(start + together, len(steps)) - 1]))
        means.append(sum(known) / len(known) if known else None)
    return places, means


def _of_run(name: str, run: Path) -> Iterator[Lines]:
    shares = describe_balance(read_log(run))["shares"]
    layers = list(dict.fromkeys(row["layer"] for row in shares))
    if len(layers) > 1:
        lines = []
        for number, layer in enumerate(layers):
            rows = [row for row in shares if row["layer"] == layer]
            effective = [row["effective_experts"] for row in rows]
            lines.append(Line(layer, number, [row["step"] for row in rows], effective))
        title = f"{name}: effective experts of each layer"
        yield Lines(file_name("balance", name, "effective"), title, "step", "effective experts", lines)
    for layer in layers:
        rows = [row for row in shares if row["layer"] == layer]
        steps = [row["step"] for row in rows]
        lines = [
            Line(f"expert {expert}", expert, steps, [row["share"][expert] for row in rows])
            for expert in range(min(len(row["share"]) for row in rows))
        ]
        yield Lines(file_name("balance", name, layer), f"{name}, {layer}", "step", "share", lines)
