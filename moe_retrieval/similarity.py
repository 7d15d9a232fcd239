"""python -m moe_retrieval.similarity: do embeddings agree with people on how alike two sentences are?"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from moe_retrieval.config import parse, run_command
from moe_retrieval.data.sentences import Pair, read_pairs
from moe_retrieval.encode import encode_texts
from moe_retrieval.errors import InputError


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
    """Where metrics.json goes; None writes nothing."""
    data_dir: str | None = None
    """Where data sets lie by name; besides, $MOE_RETRIEVAL_DATA is looked at."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"


def evaluate_similarity(model: Any, pairs: Sequence[Pair], progress: bool = False) -> dict[str, float]:
    """Pearson's and Spearman's correlation of cosine and score. Sentences get no prompt."""
    from scipy import stats

    scores = np.array([pair.score for pair in pairs])
    if len(pairs) < 2 or np.ptp(scores) == 0:
        raise InputError(f"similarity needs pairs with different scores, got {len(pairs)} with {len(set(scores))}")
    label = "sentences" if progress else None
    sides = [pair.first for pair in pairs], [pair.second for pair in pairs]
    first_NH, second_NH = (encode_texts(model, side, "text", progress=label).astype(np.float64) for side in sides)
    norms = np.linalg.norm(first_NH, axis=1) * np.linalg.norm(second_NH, axis=1)
    cosine = (first_NH * second_NH).sum(1) / np.maximum(norms, 1e-12)
    return {
        "Pearson": float(stats.pearsonr(cosine, scores).statistic),
        "Spearman": float(stats.spearmanr(cosine, scores).statistic),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(SimilarityConfig, arguments, "python -m moe_retrieval.similarity")
    from moe_retrieval.model import load

    pairs = read_pairs(config.data, config.split, config.data_dir)
    measures = evaluate_similarity(load(config.model, config.precision), pairs, progress=True)
    print(f"{config.data}, {config.split}, {len(pairs)} pairs")
    write_measures(measures, config.output_dir, {"model": config.model, "data": config.data, "split": config.split})


def write_measures(measures: dict[str, float], output_dir: str | None, origin: dict[str, Any]) -> None:
    """To the terminal, and as metrics.json."""
    for name, value in measures.items():
        print(f"{name:10} {value:.4f}")
    if output_dir is not None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        content = json.dumps({**measures, "run": origin}, indent=2)
        (Path(output_dir) / "metrics.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
