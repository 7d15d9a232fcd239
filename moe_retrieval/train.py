"""python -m moe_retrieval.train: trains a retriever; `torchrun -m moe_retrieval.train` for several processes."""

from collections.abc import Sequence

from moe_retrieval.cli import parse, run_command
from moe_retrieval.config import PRESETS, TrainConfig
from moe_retrieval.pipes import outlasting_readers
from moe_retrieval.training.loop import train


def main(arguments: Sequence[str]) -> None:
    config = parse(TrainConfig, arguments, "python -m moe_retrieval.train", PRESETS)
    with outlasting_readers():
        train(config)


if __name__ == "__main__":
    run_command(main)
