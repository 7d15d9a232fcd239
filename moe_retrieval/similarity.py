"""python -m moe_retrieval.similarity: do embeddings agree with people on how alike two sentences are?"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from moe_retrieval.cli import parse, run_command


@dataclass
class SimilarityConfig:
    """Correlates the cosine of sentence pairs with scores that people gave them (STS Benchmark)."""

    model: str
    """A run, a Hugging Face directory, an alias (minilm), or a repository of the hub."""
    data: str = "stsb"
    """The folder of STS Benchmark, also by name under $MOE_RETRIEVAL_DATA; or JSON lines with sentence1, sentence2,
    score."""
    split: str = "test"
    """train, dev or test."""
    output_dir: str | None = None
    """Where metrics.json goes; None is nowhere."""
    data_dir: str | None = None
    """Where data sets lie by name, besides $MOE_RETRIEVAL_DATA."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """The type that is computed in; auto is bf16 where that is faster, else fp32."""


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(SimilarityConfig, arguments, "python -m moe_retrieval.similarity")
    from moe_retrieval.data.sentences import read_pairs
    from moe_retrieval.evaluation.results import report
    from moe_retrieval.evaluation.similarity import evaluate_similarity
    from moe_retrieval.locks import locked
    from moe_retrieval.retrieval.model import load

    with locked(config.output_dir):
        pairs = read_pairs(config.data, config.split, config.data_dir)
        measures = evaluate_similarity(load(config.model, config.precision), pairs, progress=True)
        print(f"{config.data}, {config.split}, {len(pairs)} pairs")
        report(measures, config.output_dir, {"model": config.model, "data": config.data, "split": config.split})


if __name__ == "__main__":
    run_command(main)
