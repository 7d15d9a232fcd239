"""python -m moe_retrieval.classification: do texts of one class lie together? k nearest neighbours decide."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from moe_retrieval.config import parse, run_command
from moe_retrieval.data.sentences import Labelled, read_labelled
from moe_retrieval.encode import encode_texts
from moe_retrieval.errors import InputError
from moe_retrieval.exact import nearest
from moe_retrieval.similarity import write_measures


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
    """Where metrics.json goes; None writes nothing."""
    data_dir: str | None = None
    """Where data sets lie by name; besides, $MOE_RETRIEVAL_DATA is looked at."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"


def evaluate_classification(
    model: Any, train: Sequence[Labelled], test: Sequence[Labelled], k: int = 10, progress: bool = False
) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 averaged over the classes, each class counting the same.

    The k nearest training texts vote with their similarity; of equal votes the first class by name wins.
    """
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    if not train or not test:
        raise InputError(f"classification needs texts to learn from and to test, got {len(train)} and {len(test)}")
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    label = "texts" if progress else None
    train_NH, test_QH = (
        _unit(encode_texts(model, [item.text for item in part], "text", progress=label)) for part in (train, test)
    )
    scores_QK, rows_QK = nearest(test_QH, train_NH, k)
    classes = sorted({item.label for item in (*train, *test)})
    numbers = np.array([classes.index(item.label) for item in train])
    votes_QC = np.zeros((len(test), len(classes)))
    np.add.at(votes_QC, (np.arange(len(test))[:, None], numbers[rows_QK]), np.maximum(scores_QK, 1e-6))
    expected = np.array([classes.index(item.label) for item in test])
    found = votes_QC.argmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(expected, found, average="macro", zero_division=0.0)
    return {
        "Accuracy": float(accuracy_score(expected, found)),
        "Precision": float(precision),
        "Recall": float(recall),
        "F1": float(f1),
    }


def _unit(rows_NH: np.ndarray) -> np.ndarray:
    return rows_NH / np.maximum(np.linalg.norm(rows_NH, axis=1, keepdims=True), 1e-12)


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(ClassificationConfig, arguments, "python -m moe_retrieval.classification")
    from moe_retrieval.model import load

    train, test = (read_labelled(config.data, split, config.data_dir) for split in ("train", "test"))
    model = load(config.model, config.precision)
    measures = evaluate_classification(model, train, test, config.k, progress=True)
    print(f"{config.data}, {len(test)} texts by their {config.k} nearest of {len(train)}")
    write_measures(measures, config.output_dir, {"model": config.model, "data": config.data, "k": config.k})


if __name__ == "__main__":
    run_command(main)
