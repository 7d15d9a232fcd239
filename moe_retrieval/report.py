"""python -m moe_retrieval.report: one page of what was found, to look at and to send."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_retrieval.bounds import check_bounds, flag
from moe_retrieval.cli import parse, run_command
from moe_retrieval.errors import InputError


@dataclass
class ReportConfig:
    """Makes one HTML file, which needs no network, of what compare, train, evaluate and analyze left in a folder.

    Beside it lies each plot as PNG and SVG. What the folder has no data for is named, with the command that makes it.
    """

    input: str = "runs/compare"
    """The --output-dir of compare; or that of a single run, evaluation or analysis. Analyses below it are taken in."""
    analyses: str | None = None
    """Folders of analyze that lie elsewhere, with commas between; None is none."""
    output_dir: str | None = None
    """Where report.html and its plots go; None is the folder report below --input."""
    queries: int = 500
    """Queries to look through, with their texts: those on which systems differ most; 0 leaves them out."""
    dataset: str | None = None
    """Where the texts of the queries are from; None is what was compared on."""
    data_dir: str | None = None
    """Where data sets lie by name, besides $MOE_RETRIEVAL_DATA; None is where they lay for the comparison."""

    def __post_init__(self) -> None:
        check_bounds(self, {"queries": (0, None)}, flag)


def report(config: ReportConfig) -> Path:
    """What the command does; -> the page."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("report writes one page, in one process: call it without torchrun")
    from moe_retrieval.files import write
    from moe_retrieval.locks import locked
    from moe_retrieval.progress import Meter
    from moe_retrieval.reporting.assembly import assemble
    from moe_retrieval.reporting.drawing import save
    from moe_retrieval.reporting.library import INSTALL, plotly_js
    from moe_retrieval.reporting.page import PLOTS, page
    from moe_retrieval.reporting.sources import read_sources

    listed = [name.strip() for name in (config.analyses or "").split(",") if name.strip()]
    sources = read_sources(Path(config.input), listed)
    output = Path(config.output_dir) if config.output_dir else sources.folder / "report"
    with locked(output):
        made = assemble(sources, config.queries, config.dataset, config.data_dir)
        (output / PLOTS).mkdir(exist_ok=True)
        plots, library = made.plots(), plotly_js()
        with Meter("plots", len(plots), "plots") as meter:
            pictures = {plot.name: save(output / PLOTS, plot) for plot in meter.over(plots)}
        write(output / "report.html", page(made, library, pictures))
    for each in made.missing:
        print(f"not on the page: {each.title} ({each.why})" + (f": {each.command}" if each.command else ""))
    if library is None:
        print(f"its plots are pictures: with {INSTALL} one can look into them")
    print(f"{output / 'report.html'}: {', '.join(part.title for part in made.parts)}")
    return output / "report.html"


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    report(parse(ReportConfig, arguments, "python -m moe_retrieval.report"))


if __name__ == "__main__":
    run_command(main)
