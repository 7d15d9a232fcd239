"""Shares and their entropy, from a routing made by hand."""

import numpy as np
import pytest
import torch
from scipy import stats

from moe_retrieval.analysis.domains import Domains
from moe_retrieval.analysis.load import describe_load

HAD = torch.tensor([[6.0, 2.0, 0.0], [1.0, 1.0, 2.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
COUNTS = torch.tensor([8, 4, 0])


def test_a_row_for_all_and_for_each_domain_that_has_some():
    domains = Domains(["a", "b", "c"], torch.zeros(0), torch.zeros(0))
    rows = describe_load("block", "query", HAD, COUNTS, domains)
    assert [(row["domain"], row["count"]) for row in rows] == [(None, 12), ("a", 8), ("b", 4)]
    for row, had in zip(rows, ([7, 3, 2], [6, 2, 0], [1, 1, 2])):
        assert (row["layer"], row["side"]) == ("block", "query")
        assert row["share"] == pytest.approx(np.array(had) / sum(had))
        assert row["entropy"] == pytest.approx(stats.entropy(had))
        assert row["effective_experts"] == pytest.approx(np.exp(stats.entropy(had)))


def test_one_domain_is_not_told_apart():
    domains = Domains(["a"], torch.zeros(0), torch.zeros(0))
    assert [row["domain"] for row in describe_load("block", "query", HAD[:1], COUNTS[:1], domains)] == [None]


def test_one_expert_that_has_all_is_one_and_of_nothing_there_are_none():
    domains = Domains(["a"], torch.zeros(0), torch.zeros(0))
    (alone,) = describe_load("block", "query", torch.tensor([[0.0, 5.0]]), torch.tensor([5]), domains)
    assert (alone["entropy"], alone["effective_experts"]) == (0.0, 1.0)
    (empty,) = describe_load("block", "query", torch.zeros(1, 2), torch.tensor([0]), domains)
    assert (empty["share"], empty["effective_experts"]) == ([0.0, 0.0], 0.0)
