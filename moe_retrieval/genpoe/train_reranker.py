"""python -m moe_retrieval.genpoe.train_reranker: a causal language model learns which passages answer a question."""

import sys
from collections.abc import Sequence

from moe_retrieval.cli import parse, run_command
from moe_retrieval.genpoe.reranker_config import TrainRerankerConfig
from moe_retrieval.pipes import outlasting_readers


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(TrainRerankerConfig, arguments, "python -m moe_retrieval.genpoe.train_reranker")
    from moe_retrieval.genpoe.reranker_training import train_reranker

    with outlasting_readers():
        train_reranker(config)


if __name__ == "__main__":
    run_command(main)
