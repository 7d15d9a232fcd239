"""The experiment's measures over its seeds, as tables."""

from collections.abc import Sequence
from typing import Any


def table(results: dict[str, Any]) -> str:
    """In Markdown, in percent: means over the seeds and, where there are several, their ranges."""
    seeds = list(results["seeds"].values())
    ways = seeds[0]["answers"]
    answers = [[name, *(_told([seed["answers"][name][of] for seed in seeds]) for of in ("EM", "F1"))] for name in ways]
    cuts = [name for name in ("top-1", "top-5") if all(name in seed["retrieval"]["BM25"] for seed in seeds)]
    lists = seeds[0]["retrieval"]
    found = [[name, *(_told([seed["retrieval"][name][cut] for seed in seeds]) for cut in cuts)] for name in lists]
    return "\n\n".join(
        (_rows(["answered with", "EM", "F1"], answers), _rows(["passages ordered by", *cuts], found), _took(seeds))
    )


def _told(shares: Sequence[float]) -> str:
    """
    >>> _told([0.91, 0.94]), _told([0.91])
    ('92.5 (91.0-94.0)', '91.0')
    """
    percent = [100 * share for share in shares]
    mean = f"{sum(percent) / len(percent):.1f}"
    return mean if len(shares) == 1 else f"{mean} ({min(percent):.1f}-{max(percent):.1f})"


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths))} |".rstrip() for line in lines
    )


def _took(seeds: Sequence[dict[str, Any]]) -> str:
    learned = ("decoder", "reranker", "hypernetwork")
    means = {name: sum(seed["seconds"].get(name, 0.0) for seed in seeds) / len(seeds) for name in learned}
    whole = sum(sum(seed["seconds"].values()) for seed in seeds) / len(seeds)
    parts = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in means.items())
    return f"Minutes a seed: {whole / 60:.1f}, of which {parts}. Each seed asks {seeds[0]['questions']} questions."
