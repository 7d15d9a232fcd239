"""Spearman's correlation, against Pearson's of the ranks."""

import numpy as np
import pytest
from scipy import stats

from moe_retrieval.analysis.confidence import describe_confidence


def ranks(values):
    """Of equal ones the mean of their places."""
    values = np.asarray(values)
    return np.array([np.mean(np.flatnonzero(np.sort(values) == value)) for value in values])


def test_the_correlation_and_its_p_and_the_bins():
    rng = np.random.default_rng(0)
    confidence = rng.random(103).round(2)
    ndcg = np.where(rng.random(103) < confidence, 1.0, 0.0)
    found = describe_confidence("block", confidence, ndcg)
    r = np.corrcoef(ranks(confidence), ranks(ndcg))[0, 1]
    assert found["spearman"] == pytest.approx(r)
    assert found["p"] == pytest.approx(2 * stats.t.sf(abs(r) * np.sqrt(101 / (1 - r**2)), 101))
    assert found["p"] < 0.001
    assert [part["queries"] for part in found["bins"]] == [21, 21, 21, 20, 20]
    order = np.argsort(confidence, kind="stable")
    assert found["bins"][0]["ndcg_at_10"] == pytest.approx(ndcg[order[:21]].mean())
    assert found["bins"][4]["lowest"] == confidence[order[83]]
    assert found["bins"][4]["highest"] == confidence.max()


@pytest.mark.parametrize(
    "confidence, ndcg", [([0.5] * 9, np.arange(9.0)), (np.arange(9.0), [1.0] * 9), ([0.1, 0.2], [0.0, 1.0])]
)
def test_what_has_no_correlation_has_none(confidence, ndcg):
    found = describe_confidence("block", np.asarray(confidence), np.asarray(ndcg))
    assert (found["spearman"], found["p"]) == (None, None)
    assert sum(part["queries"] for part in found["bins"]) == len(ndcg)
