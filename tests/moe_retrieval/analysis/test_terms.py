"""Which terms an expert attracts."""

import math

import pytest
import torch

from moe_retrieval.analysis.terms import PRIOR, TermCounts, Words, log_odds, top_terms


def score(counts, term, expert):
    """The formula of the module's head, by plain numbers."""
    total = sum(map(sum, counts))
    alpha = PRIOR * sum(counts[term]) / total
    y, r = counts[term][expert], sum(counts[term]) - counts[term][expert]
    n = sum(row[expert] for row in counts)
    m = total - n
    odds = math.log((y + alpha) / (n + PRIOR - y - alpha)) - math.log((r + alpha) / (m + PRIOR - r - alpha))
    return odds / math.sqrt(1 / (y + alpha) + 1 / (r + alpha))


def test_the_scores_are_those_of_the_formula():
    counts = [[9, 0, 2], [500, 480, 470], [0, 30, 1], [1, 0, 0], [2.5, 3, 0.5]]
    scores = log_odds(torch.tensor(counts, dtype=torch.float64))
    for term in range(5):
        for expert in range(3):
            assert scores[term, expert].item() == pytest.approx(score(counts, term, expert))


def test_an_expert_is_told_by_what_it_has_more_than_others():
    counts = torch.zeros(50, 2, dtype=torch.float64)
    counts[3] = torch.tensor([60.0, 2.0])
    counts[7] = torch.tensor([5.0, 80.0])
    counts[10:30] = 200.0  # everywhere
    counts[40, 0] = 1.0  # too rare to say anything
    first, second = top_terms(counts)
    assert [term.number for term in first] == [3]
    assert [term.number for term in second] == [7]
    assert (second[0].here, second[0].share) == (80.0, pytest.approx(80 / 85))
    assert top_terms(counts[[0, 20]]) == [[], []]  # a single term has no odds
    assert top_terms(torch.zeros(0, 3)) == [[], [], []]


def test_an_expert_with_nothing_has_no_terms():
    counts = torch.tensor([[50.0, 0.0], [9.0, 0.0]], dtype=torch.float64)
    assert top_terms(counts)[1] == []


def test_counts_add_up_whatever_the_order_of_the_terms():
    counts = TermCounts(2)
    counts.add(torch.tensor([5, 1, 5]), torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]))
    counts.add(torch.tensor([], dtype=torch.int64), torch.zeros(0, 2))
    counts.add(torch.tensor([900, 1]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert counts.counts_VE[[1, 5, 900]].tolist() == [[1.5, 0.5], [1.0, 1.0], [0.0, 1.0]]
    assert counts.counts_VE.sum() == 5


def test_words():
    words = Words()
    terms, places = words.of(["Moss, moss; a FERN", "", "fern-leaf 42"])
    assert [words.names()[number] for number in terms.tolist()] == ["moss", "fern", "fern", "leaf", "42"]
    assert places.tolist() == [0, 0, 2, 2, 2]
    terms, places = words.of([""])
    assert (len(terms), len(places)) == (0, 0)
    assert words.of(["leaf"])[0].tolist() == [words.names().index("leaf")]
