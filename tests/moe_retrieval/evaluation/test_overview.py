"""The mean over collections, as BEIR has it."""

import numpy as np
import pytest

from moe_retrieval.evaluation.metrics import Measures
from moe_retrieval.evaluation.overview import Scored, mean_measures, overview

NAMES = ("NDCG@10", "Recall@100", "MRR@10")


def scored(group, name, **systems):
    rows = {
        system: Measures(dict.fromkeys(NAMES, value), {n: np.array([value]) for n in NAMES})
        for system, value in systems.items()
    }
    return Scored(group, name, rows)


def test_the_members_of_a_group_count_as_one():
    of_all = [
        scored("scifact", "scifact", bm25=0.5, ours=0.9),
        scored("forums", "forums/a", bm25=0.1, ours=0.2),
        scored("forums", "forums/b", bm25=0.3, ours=0.6),
    ]
    assert mean_measures(of_all, "ours")["NDCG@10"] == pytest.approx((0.9 + 0.4) / 2)
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in overview(of_all).splitlines()
    }
    assert rows["NDCG@10"] == ["bm25", "ours"]
    assert rows["forums/b"] == ["0.300", "0.600"]
    assert rows["forums, mean of 2"] == ["0.200", "0.400"]
    assert rows["**mean**"] == rows["**mean MRR@10**"] == ["0.350", "0.650"]


def test_one_group_needs_no_mean_of_its_own():
    of_all = [scored("forums", "forums/a", ours=0.2), scored("forums", "forums/b", ours=0.6)]
    assert "mean of" not in overview(of_all)
    assert mean_measures(of_all, "ours")["Recall@100"] == pytest.approx(0.4)
