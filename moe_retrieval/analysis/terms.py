"""The terms that an expert attracts: the log-odds of each, with the whole of the texts as a prior.

With y the count of a term at an expert, r its count at the others, n and m the counts of all terms there, and a prior
that counts a term as often among `PRIOR` terms as it is among all, alpha:

    score = (log((y + alpha) / (n + PRIOR - y - alpha)) - log((r + alpha) / (m + PRIOR - r - alpha)))
            / sqrt(1 / (y + alpha) + 1 / (r + alpha))

A normal deviate, if the expert drew its terms like the others (Monroe, Colaresi and Quinn, "Fightin' Words", 2008): a
rare term needs a clear majority, a frequent one a small one.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PRIOR = 1000.0
"""Terms"""

SURE = 1.96
"""The least score that is told: chance alone is above it once in forty terms"""

MOST = 12
"""Terms an expert that are told"""

WORD = re.compile(r"\w\w+")


class Words:
    """Words numbered as they come: lower case, of two letters or more."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def of(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """-> the numbers of the words of each text, each word once a text, and for each the place of its text.

        A text goes to its experts as a whole: a word that it has twenty times says no more than one.
        """
        found = [
            (self.numbers.setdefault(word, len(self.numbers)), place)
            for place, text in enumerate(texts)
            for word in dict.fromkeys(WORD.findall(text.lower()))
        ]
        pairs = torch.tensor(found, dtype=torch.int64).view(len(found), 2)
        return pairs[:, 0], pairs[:, 1]

    def names(self) -> list[str]:
        return list(self.numbers)


class TermCounts:
    """How often each term went to each expert."""

    def __init__(self, num_experts: int):
        self.counts_VE = torch.zeros(0, num_experts, dtype=torch.float64)

    def add(self, terms_N: Tensor, share_NE: Tensor) -> None:
        """Of each term, what part of it every expert had."""
        if not len(terms_N):
            return
        missing = int(terms_N.max()) + 1 - len(self.counts_VE)
        if missing > 0:
            room = max(missing, len(self.counts_VE))  # twice as much at least, so that few additions copy
            self.counts_VE = torch.cat([self.counts_VE, self.counts_VE.new_zeros(room, self.counts_VE.shape[1])])
        self.counts_VE.index_add_(0, terms_N, share_NE.to(self.counts_VE.dtype))


class Term(NamedTuple):
    number: int
    score: float
    here: float
    """Its count at the expert"""
    share: float
    """Of all its counts, those at the expert"""


def top_terms(counts_VE: Tensor) -> list[list[Term]]:
    """Of each expert, the terms with the highest scores that are sure, the highest first."""
    known_V = counts_VE.sum(1) > 0
    numbers_V, counts_VE = known_V.nonzero()[:, 0], counts_VE[known_V]
    if len(numbers_V) < 2:
        return [[] for _ in range(counts_VE.shape[1])]
    scores_VE, total_V = log_odds(counts_VE), counts_VE.sum(1)
    told = []
    for expert in range(counts_VE.shape[1]):
        best = scores_VE[:, expert].sort(descending=True, stable=True).indices[:MOST].tolist()
        told.append(
            [
                Term(int(numbers_V[row]), float(scores_VE[row, expert]), float(count), float(count / total_V[row]))
                for row in best
                if scores_VE[row, expert] >= SURE
                for count in (counts_VE[row, expert],)
            ]
        )
    return told


def log_odds(counts_VE: Tensor) -> Tensor:
    """-> scores_VE; of two terms or more, each of which has been counted."""
    total_V = counts_VE.sum(1, keepdim=True)
    prior_V = PRIOR * total_V / total_V.sum()
    here_VE = counts_VE + prior_V
    there_VE = total_V - counts_VE + prior_V
    odds_VE = (here_VE / (here_VE.sum(0) - here_VE)).log() - (there_VE / (there_VE.sum(0) - there_VE)).log()
    return odds_VE / (1 / here_VE + 1 / there_VE).sqrt()
