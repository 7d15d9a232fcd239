"""python -m moe_retrieval.pretrain: an encoder learns a corpus before it is a retriever; or by torchrun."""

import sys
from collections.abc import Sequence

from moe_retrieval.cli import fixed, parse, run_command
from moe_retrieval.pipes import outlasting_readers
from moe_retrieval.presets import FROM_SCRATCH
from moe_retrieval.training.pretrain_config import PretrainConfig

PRESETS = fixed({"from-scratch": FROM_SCRATCH})


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(PretrainConfig, arguments, "python -m moe_retrieval.pretrain", PRESETS)
    from moe_retrieval.training.pretraining import pretrain

    with outlasting_readers():
        pretrain(config)


if __name__ == "__main__":
    run_command(main)
