"""What a passage that became an expert is worth, without a network: moe_retrieval.genpoe.experiment, and its figures.

    python -m bench.genpoe [flags of moe_retrieval.genpoe.experiment]

Writes bench/results/genpoe.json: every seed's measures, where and when they were taken; and its table into
docs/genpoe.md. An experiment that was stopped goes on.
"""

import json
import sys
from collections.abc import Sequence

import torch

from bench.harness.machine import ROOT, describe, short
from bench.harness.record import RESULTS
from bench.reports.page import write_page
from moe_retrieval.cli import parse, run_command
from moe_retrieval.genpoe.experiment_config import PRESETS, ExperimentConfig
from moe_retrieval.genpoe.experiment_results import table
from moe_retrieval.genpoe.experiment_stages import run

FILE, PAGE = RESULTS / "genpoe.json", ROOT / "docs" / "genpoe.md"


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
    config = parse(ExperimentConfig, arguments, "python -m bench.genpoe", PRESETS)
    about = describe(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    results = {"machine": about, **run(config)}
    FILE.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    write_page(PAGE, "bench.genpoe", f"{table(results)}\n\n{origin(results)}")
    print(f"results: {FILE}, {PAGE}")


def origin(results: dict) -> str:
    about = results["machine"]
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("torch", "transformers"))
    seeds = ", ".join(results["seeds"])
    return (
        f"Seeds {seeds}, on {about['device']}, {versions}, {about['time'][:10]}, revision {short(about['revision'])}."
    )


if __name__ == "__main__":
    run_command(main)
