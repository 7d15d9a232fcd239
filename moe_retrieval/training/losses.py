"""What a retriever is trained to do: put a question nearer to its answers than to everything else.

Suffixes: N queries of this rank, D documents of all ranks, H embedding, R relevant documents of a query, C columns:
column 0 holds the positive of each query, the others its hard negatives.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_retrieval.errors import InputError
from moe_retrieval.training.false_negatives import answers, false_negatives
from moe_retrieval.training.targets import Targets, gather_columns

LOSSES = ("infonce", "triplet", "contrastive")


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
            real_NC = ~answers(targets.keys_NC, targets.relevant_NR)[:, 1:]
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
        answers_NC = answers(targets.keys_NC, targets.relevant_NR)
        pulled_NC, pushed_NC = distance_NC.square(), F.relu(self.margin - distance_NC).square()
        return torch.where(answers_NC, pulled_NC, pushed_NC).mean(1) / 2
