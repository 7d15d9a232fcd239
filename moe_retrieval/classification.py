"""python -m moe_retrieval.classification: do texts of one class lie together? k nearest neighbours decide."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from moe_retrieval.bounds import check_bounds, flag
from moe_retrieval.cli import parse, run_command


@dataclass
class ClassificationConfig:
    """Classifies test texts by the k nearest training texts (TREC-6: question classes)."""

    model: str
    """A run, a Hugging Face directory, an alias (minilm), or a repository of the hub."""
    data: str = "trec6"
    """The folder of TREC-6, also by name under $MOE_RETRIEVAL_DATA; or a folder with train.jsonl and test.jsonl, lines
    with text and label."""
    k: int = 10
    """Neighbours."""
    output_dir: str | None = None
    """Where metrics.json goes; None is nowhere."""
    data_dir: str | None = None
    """Where data sets lie by name, besides $MOE_RETRIEVAL_DATA."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """The type that is computed in; auto is bf16 where that is faster, else fp32."""

    def __post_init__(self) -> None:
        check_bounds(self, {"k": (1, None)}, flag)


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(ClassificationConfig, arguments, "python -m moe_retrieval.classification")
    from moe_retrieval.data.sentences import read_labelled
    from moe_retrieval.evaluation.classification import evaluate_classification
    from moe_retrieval.evaluation.results import report
    from moe_retrieval.locks import locked
    from moe_retrieval.retrieval.model import load

    with locked(config.output_dir):
        train, test = (read_labelled(config.data, split, config.data_dir) for split in ("train", "test"))
        model = load(config.model, config.precision)
        measures = evaluate_classification(model, train, test, config.k, progress=True)
        print(f"{config.data}, {len(test)} texts by their {config.k} nearest of {len(train)}")
        report(measures, config.output_dir, {"model": config.model, "data": config.data, "k": config.k})


if __name__ == "__main__":
    run_command(main)
