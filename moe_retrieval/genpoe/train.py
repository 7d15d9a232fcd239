"""python -m moe_retrieval.genpoe.train: a hypernetwork learns to make experts of passages; torchrun for several."""

import sys
from collections.abc import Sequence

from moe_retrieval.cli import parse, run_command
from moe_retrieval.genpoe.train_config import PRESETS, TrainConfig
from moe_retrieval.pipes import outlasting_readers


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(TrainConfig, arguments, "python -m moe_retrieval.genpoe.train", PRESETS)
    from moe_retrieval.genpoe.reader_training import train

    with outlasting_readers():
        train(config)


if __name__ == "__main__":
    run_command(main)
