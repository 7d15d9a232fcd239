"""What must not count as a negative: a document of the batch that answers the query all the same.

Suffixes: see `losses.py`.
"""

from torch import Tensor

from moe_retrieval.training.distributed import gather_rows
from moe_retrieval.training.targets import Targets


def false_negatives(targets: Targets, labels_N: Tensor) -> Tensor:
    """True at [query, document] where a document that is not the query's positive must not count as a negative."""
    keys_D = gather_rows(targets.keys_NC, targets.counts).T.flatten()
    answers_ND = answers(keys_D.expand(len(labels_N), -1), targets.relevant_NR)
    return answers_ND.scatter(1, labels_N[:, None], False)


def answers(keys_NX: Tensor, relevant_NR: Tensor) -> Tensor:
    """Which of the documents answer the query of their row."""
    return (keys_NX[:, :, None] == relevant_NR[:, None, :]).any(-1)
