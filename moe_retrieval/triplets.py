"""python -m moe_retrieval.triplets: a data set's pairs with hard negatives, as JSON lines to train on anywhere."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from moe_retrieval.bounds import check_bounds, flag
from moe_retrieval.cli import parse, run_command
from moe_retrieval.dataset_names import Named, check_columns
from moe_retrieval.errors import InputError


@dataclass
class TripletsConfig:
    """Writes lines {"query": ..., "positive": ..., "negative": ...}, one for each pair of a split and each of its hard
    negatives. --dataset of train reads them back."""

    output: str
    """The file, which ends in .jsonl."""
    dataset: str = "docs"
    """docs, a BEIR data set by name, a BEIR-format folder, or JSON lines of pairs, triplets or lists."""
    data_dir: str | None = None
    """Where data sets lie by name, besides $MOE_RETRIEVAL_DATA."""
    columns: str | None = None
    """hf: which column is which field of a line, like query=question,positive=answer; None is by their names."""
    split: str = "train"
    """Whose pairs are taken."""
    negatives: Literal["bm25", "mined", "in-batch"] = "bm25"
    """Where hard negatives come from: bm25 finds them by words, mined by the model; in-batch are those that the data
    names."""
    num_negatives: int = 1
    """Hard negatives a pair."""
    depth: int = 100
    """bm25 and mined: how far down a ranking they are looked for."""
    margin: float = 0.05
    """mined: a document that comes closer to the query than so much below the answer may be one itself, and is left."""
    model: str = "minilm"
    """mined: a run, a Hugging Face directory, an alias, or a repository of the hub."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """The type that is computed in; auto is bf16 where that is faster, else fp32."""
    seed: int = 0
    """Of the random documents that fill up where a ranking has too few."""

    def __post_init__(self) -> None:
        check_bounds(self, {"num_negatives": (1, None), "depth": (1, None), "seed": (0, 2**32 - 1)}, flag)
        if not self.output.endswith(".jsonl"):
            raise InputError(f"--output must end in .jsonl, got {self.output}")
        check_columns([Named(self.dataset)], self.columns)


def write_triplets(config: TripletsConfig) -> int:
    """What the command does; -> how many lines it wrote."""
    from moe_retrieval import data
    from moe_retrieval.retrieval.model import load
    from moe_retrieval.training.negatives import HardNegatives, training_pairs
    from moe_retrieval.training.triplets import write

    collection = data.load(config.dataset, config.data_dir, config.columns)
    collection.qrels(config.split)
    wanted = HardNegatives(config.negatives, config.num_negatives, config.depth, config.margin)
    model = load(config.model, config.precision) if config.negatives == "mined" else None
    pairs = training_pairs(collection, wanted, split=config.split, model=model, seed=config.seed)
    return write(pairs, config.output)


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(TripletsConfig, arguments, "python -m moe_retrieval.triplets")
    written = write_triplets(config)
    print(f"{written} triplets in {config.output}")


if __name__ == "__main__":
    run_command(main)
