"""What a retriever is trained to do: put a question nearer to its answers than to everything else.

Suffixes: N queries of this rank, D documents of all ranks, H embedding, R relevant documents of a query, C columns:
column 0 holds the positive of each query, the others its hard negatives.
"""

from dataclasses import dataclass
from hashlib import blake2b

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from moe_retrieval.errors import InputError
from moe_retrieval.training.distributed import gather_rows

LOSSES = ("infonce", "triplet", "contrastive")


def document_key(document_id: str) -> int:
    """A number for an id that can be compared across ranks."""
    return int.from_bytes(blake2b(document_id.encode(), digest_size=8).digest(), "little", signed=True)


@dataclass(frozen=True)
class Targets:
    """Which document is which, for the queries of one rank's share of a batch."""

    keys_NC: Tensor
    """The key of each document that came with a query."""
    relevant_NR: Tensor
    """The keys of all documents that answer the query, filled up with any of them."""
    counts: list[int]
    """Queries of each rank."""

    def to(self, device: torch.device) -> "Targets":
        return Targets(self.keys_NC.to(device), self.relevant_NR.to(device), self.counts)


@dataclass(frozen=True)
class Objective:
    """A loss by name, with its one number.

    Each is a mean over the queries of all ranks: a rank returns its sum times ranks / queries, so that the mean of
    gradients over ranks is the gradient of one big batch, however unevenly the queries are shared out.
    """

    name: str = "infonce"
    temperature: float = 0.05
    margin: float = 0.5

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise InputError(f"loss must be one of {', '.join(LOSSES)}; got {self.name!r}")
        if self.temperature <= 0:
            raise InputError(f"temperature must be above 0, got {self.temperature}")
        if self.margin <= 0:
            raise InputError(f"margin must be above 0, got {self.margin}")

    def __call__(self, queries_NH: Tensor, documents_CNH: Tensor, targets: Targets) -> Tensor:
        """documents are [1 + negatives, N, H]."""
        wide = torch.promote_types(queries_NH.dtype, torch.float32)
        with torch.autocast(queries_NH.device.type, enabled=False):
            loss_N = getattr(self, f"_{self.name}")(queries_NH.to(wide), documents_CNH.to(wide), targets)
        return loss_N.sum() * len(targets.counts) / sum(targets.counts)

    def _infonce(self, queries_NH: Tensor, documents_CNH: Tensor, targets: Targets) -> Tensor:
        """Multiple negatives ranking: cross-entropy of the positive among all documents of all ranks.

        1. Gather the documents, by column, with gradient.
        2. Scores over temperature.
        3. Mask what is not a negative: a document that answers the query too, or is the positive once more.
        4. Cross-entropy.
        """
        documents_DH, labels_N = gather_columns(documents_CNH, targets.counts)
        scores_ND = queries_NH @ documents_DH.T / self.temperature
        scores_ND = scores_ND.masked_fill(false_negatives(targets, labels_N), float("-inf"))
        return F.cross_entropy(scores_ND, labels_N, reduction="none")

    def _triplet(self, queries_NH: Tensor, documents_CNH: Tensor, targets: Targets) -> Tensor:
        """relu(margin - score of the positive + score of a negative): the mean over a query's own hard negatives, or
        the worst document of the batch where queries bring none.
        """
        if len(documents_CNH) > 1:
            scores_NC = torch.einsum("nh,cnh->nc", queries_NH, documents_CNH)
            real_NC = ~_answers(targets.keys_NC, targets.relevant_NR)[:, 1:]
            losses_NC = F.relu(self.margin - scores_NC[:, :1] + scores_NC[:, 1:]) * real_NC
            return losses_NC.sum(1) / real_NC.sum(1).clamp(min=1)
        documents_DH, labels_N = gather_columns(documents_CNH, targets.counts)
        scores_ND = queries_NH @ documents_DH.T
        positive_N = scores_ND.gather(1, labels_N[:, None])[:, 0]
        others = false_negatives(targets, labels_N).scatter(1, labels_N[:, None], True)
        worst_N = scores_ND.masked_fill(others, float("-inf")).amax(1)
        return F.relu(self.margin - positive_N + worst_N)

    def _contrastive(self, queries_NH: Tensor, documents_CNH: Tensor, targets: Targets) -> Tensor:
        """On labelled pairs, with the distance d = 1 - score: d² for a document that answers, relu(margin - d)² for one
        that does not; the mean over a query's own documents, halved.
        """
        distance_NC = 1 - torch.einsum("nh,cnh->nc", queries_NH, documents_CNH)
        answers_NC = _answers(targets.keys_NC, targets.relevant_NR)
        pulled_NC, pushed_NC = distance_NC.square(), F.relu(self.margin - distance_NC).square()
        return torch.where(answers_NC, pulled_NC, pushed_NC).mean(1) / 2


def gather_columns(documents_CNH: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
    """-> documents_DH of all ranks (every positive, then every first negative, ...) and labels_N, where ours are."""
    gathered = gather_rows(
        documents_CNH.transpose(0, 1), counts
    )  # rows are queries: what belongs to one stays together
    documents_DH = gathered.transpose(0, 1).flatten(0, 1)
    return documents_DH, torch.arange(documents_CNH.shape[1], device=documents_CNH.device) + _first_label(counts)


def _first_label(counts: list[int]) -> int:
    return 0 if len(counts) == 1 else sum(counts[: dist.get_rank()])


def false_negatives(targets: Targets, labels_N: Tensor) -> Tensor:
    """True at [query, document] where a document that is not the query's positive must not count as a negative."""
    keys_D = gather_rows(targets.keys_NC, targets.counts).T.flatten()
    answers_ND = _answers(keys_D.expand(len(labels_N), -1), targets.relevant_NR)
    return answers_ND.scatter(1, labels_N[:, None], False)


def _answers(keys_NX: Tensor, relevant_NR: Tensor) -> Tensor:
    """Which of the documents answer the query of their row."""
    return (keys_NX[:, :, None] == relevant_NR[:, None, :]).any(-1)
