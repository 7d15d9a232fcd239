"""python -m moe_retrieval.train: trains a retriever; `torchrun -m moe_retrieval.train` for several processes."""

import os
import sys
from collections.abc import Sequence
from typing import Any

from moe_retrieval.cli import parse, run_command
from moe_retrieval.config import PRESETS, TrainConfig
from moe_retrieval.pipes import outlasting_readers


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains as the config says; -> the metrics of the best model (empty with `no_eval`)."""
    config.check()
    from moe_retrieval.training import loop  # torch comes with it: what makes no sense is told before

    return loop.train(config)


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(TrainConfig, arguments, "python -m moe_retrieval.train", PRESETS)
    config.check()
    if os.environ.get("RANK", "0") == "0":
        print(f"training {config.variant} from {config.model} on {config.dataset}, in {config.output_dir}", flush=True)
    with outlasting_readers():
        train(config)


if __name__ == "__main__":
    run_command(main)
