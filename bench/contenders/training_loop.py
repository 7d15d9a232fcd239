"""The training step of a tutorial, from padded token ids to changed weights; and what every contender's step agrees on.

InfoNCE over in-batch negatives at temperature 0.05, dropout 0.1, bf16 autocast, AdamW, gradients clipped at 1. The
learning rate is 0: every step works on the same numbers, so its loss can be checked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DROPOUT, TEMPERATURE = 0.1, 0.05
PEERS_ATTENTION_DROPOUT = 0.0
"""Ours drops attention probabilities too. Peers do not: it would take their attention off its fast way on a CPU, where
it then costs several times as much."""

StepCall = Callable[[], Tensor]
"""Takes a step; returns its loss."""


@dataclass(frozen=True)
class Pairs:
    """What a step works on: the token ids of queries and of their documents, row by row."""

    folder: Path
    """Of the model that all start from."""
    queries: list[list[int]]
    documents: list[list[int]]
    device: torch.device

    @property
    def padded(self) -> list[tuple[Tensor, Tensor]]:
        """Token ids and attention mask of either side."""
        return [_padded(side, self.device) for side in (self.queries, self.documents)]


def updating(model: nn.Module, loss: Callable[[], Tensor]) -> StepCall:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.01, fused=True)

    def step() -> Tensor:
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return step


def info_nce(queries_NH: Tensor, documents_NH: Tensor) -> Tensor:
    scores_NN = queries_NH.float() @ documents_NH.float().T / TEMPERATURE
    return F.cross_entropy(scores_NN, torch.arange(len(scores_NN), device=scores_NN.device))


def _padded(sequences: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    rows = [torch.tensor(sequence) for sequence in sequences]
    input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return input_ids.to(device), (torch.arange(input_ids.shape[1]) < lengths[:, None]).long().to(device)
