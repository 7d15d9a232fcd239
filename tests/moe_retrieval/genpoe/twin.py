"""A feed-forward part with experts beside it, as it is written: a token and an expert at a time, in fp64."""

import torch
from torch import nn


def by_hand(experts, sample, x_H):
    """The term of one token, an expert at a time."""
    rows = range(*experts.cu_passages[sample : sample + 2].tolist())
    weights = experts.scores_P[list(rows)].double().softmax(0)
    total = torch.zeros_like(x_H, dtype=torch.float64)
    for weight, row in zip(weights, rows):
        enter, up, down, leave = (
            delta[row].double() + base.double() for delta, base in zip(experts.deltas, experts.base)
        )
        total += weight * ((x_H.double() @ enter.T @ up.T).relu() @ down.T @ leave)
    return total


class Twin(nn.Module):
    """What a feed-forward part with experts is, token by token; `live` says on which they run."""

    def __init__(self, ffn, experts, live):
        super().__init__()
        self.ffn, self.experts, self.live = ffn, experts, live

    def forward(self, x):
        y = self.ffn(x).clone()
        for sample, place in self.live.nonzero().tolist():
            y[sample, place] += by_hand(self.experts, sample, x[sample, place])
        return y
