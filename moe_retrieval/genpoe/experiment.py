"""python -m moe_retrieval.genpoe.experiment: does a passage that became an expert answer? Without a network."""

import sys
from collections.abc import Sequence

from moe_retrieval.cli import parse, run_command
from moe_retrieval.genpoe.experiment_config import PRESETS, ExperimentConfig


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(ExperimentConfig, arguments, "python -m moe_retrieval.genpoe.experiment", PRESETS)
    from moe_retrieval.genpoe.experiment_results import table
    from moe_retrieval.genpoe.experiment_stages import run

    print(table(run(config)))


if __name__ == "__main__":
    run_command(main)
