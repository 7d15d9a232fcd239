"""Do texts of one class lie together? k nearest neighbours decide."""

from collections.abc import Sequence

import numpy as np

from moe_retrieval.data.sentences import Labelled
from moe_retrieval.errors import InputError
from moe_retrieval.retrieval.embedder import Embedder
from moe_retrieval.retrieval.encode import encode_texts
from moe_retrieval.retrieval.exact import nearest


def evaluate_classification(
    model: Embedder, train: Sequence[Labelled], test: Sequence[Labelled], k: int = 10, progress: bool = False
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
