"""python -m moe_retrieval.train: trains a retriever; `torchrun -m moe_retrieval.train` for several processes."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moe_retrieval.cli import parse, run_command
from moe_retrieval.config import TrainConfig
from moe_retrieval.errors import InputError
from moe_retrieval.pipes import outlasting_readers
from moe_retrieval.presets import PRESETS

if TYPE_CHECKING:
    from moe_retrieval.data.memory import Pairs


def train(config: TrainConfig, pairs: "Pairs | None" = None) -> dict[str, Any]:
    """Trains as the config says; -> the metrics of the best model (empty with `no_eval`).

    `pairs` takes the place of `config.dataset`: a list of (query, positive), (query, positive, negative) or
    (query, document, 0 or 1), or of dicts like the lines of a file; or such lists by split, train, dev and test.
    """
    config.check()
    if pairs is not None:
        if config.dataset != TrainConfig.dataset:
            raise InputError(f"pairs take the place of a data set: expected one of both, got {config.dataset} too")
        from moe_retrieval.data import memory

        config = replace(config, dataset=str(memory.keep(pairs)))
    from moe_retrieval.training import loop  # torch comes with it: what makes no sense is told before

    return loop.train(config)


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    presets = {name: preset.flags for name, preset in PRESETS.items()}
    config = parse(TrainConfig, arguments, "python -m moe_retrieval.train", presets)
    config.check()
    if os.environ.get("RANK", "0") == "0":
        print(f"training {config.variant} from {config.model} on {config.dataset}, in {config.output_dir}", flush=True)
    with outlasting_readers():
        train(config)


if __name__ == "__main__":
    run_command(main)
