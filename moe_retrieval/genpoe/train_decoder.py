"""python -m moe_retrieval.genpoe.train_decoder: a small language model for an experiment without a network."""

import sys
from collections.abc import Sequence

from moe_retrieval.cli import parse, run_command
from moe_retrieval.genpoe.decoder_config import TrainDecoderConfig
from moe_retrieval.pipes import outlasting_readers


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(TrainDecoderConfig, arguments, "python -m moe_retrieval.genpoe.train_decoder")
    from moe_retrieval.genpoe.decoder_training import train_decoder

    with outlasting_readers():
        train_decoder(config)


if __name__ == "__main__":
    run_command(main)
