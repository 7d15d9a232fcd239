"""All parts of a page, in their order, of what there is; and what there is not."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from moe_retrieval.reporting.asked import asked
from moe_retrieval.reporting.costs import costs
from moe_retrieval.reporting.curves import curves
from moe_retrieval.reporting.experts import experts
from moe_retrieval.reporting.maps import maps
from moe_retrieval.reporting.part import Choice, Missing, Part
from moe_retrieval.reporting.plots import Plot
from moe_retrieval.reporting.result import result
from moe_retrieval.reporting.sources import Sources
from moe_retrieval.reporting.sweep import sweep
from moe_retrieval.reporting.training import balance, training


class Report(NamedTuple):
    title: str
    about: str
    command: str | None
    """What made the comparison"""
    parts: Sequence[Part]
    missing: Sequence[Missing]

    def choices(self) -> Iterator[Choice]:
        return (item for part in self.parts for item in part.items if isinstance(item, Choice))

    def plots(self) -> list[Plot]:
        return [plot for choice in self.choices() for plot in choice.plots]


def assemble(sources: Sources, queries: int, dataset: str | None, data_dir: str | None) -> Report:
    """`queries` is the most that can be looked through."""
    made = [
        result(sources),
        curves(sources),
        sweep(sources),
        experts(sources),
        balance(sources),
        maps(sources),
        costs(sources),
        training(sources),
        asked(sources, queries, dataset, data_dir),
    ]
    parts = with_own_names([part for part in made if isinstance(part, Part)])
    title, about = _about(sources)
    command = sources.comparison["command"] if sources.comparison else None
    return Report(title, about, command, parts, [part for part in made if isinstance(part, Missing)])


def with_own_names(parts: Sequence[Part]) -> list[Part]:
    """No two plots have one: of equal ones, the second is called -2."""
    taken: Counter[str] = Counter()

    def renamed(plot: Plot) -> Plot:
        taken[plot.name] += 1
        return plot if taken[plot.name] == 1 else renamed(replace(plot, name=f"{plot.name}-{taken[plot.name]}"))

    return [
        Part(
            part.title,
            [
                item._replace(plots=[renamed(plot) for plot in item.plots]) if isinstance(item, Choice) else item
                for item in part.items
            ],
        )
        for part in parts
    ]


def _about(sources: Sources) -> tuple[str, str]:
    if sources.comparison is not None:
        found, split = sources.comparison, sources.split
        asked_of = f"{found['queries'][split]:,} queries, {found['documents']:,} documents"
        return f"{found['collection']}, {split} split", f"{asked_of} (content hash {found['fingerprint']})"
    if sources.metrics is not None:
        of = sources.metrics["run"]
        return sources.folder.resolve().name, ", ".join(
            f"{name} {of[name]}" for name in ("dataset", "split", "setting", "queries", "documents") if name in of
        )
    of = sources.analyses[0].found["run"]
    return f"{of['dataset']}, {of['split']} split", f"{of['queries']:,} queries, {of['documents']:,} documents"
