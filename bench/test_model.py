"""Whole models: a corpus embedded, one query answered; ours and what people use today."""

import pytest
import torch

from bench.cases import model
from bench.harness.machine import importable

DOCUMENTS = {"smoke": 6, "quick": 12, "full": 96}


def cases(mode, device):
    """Precisions"""
    return ["bf16"] if mode == "quick" else ["bf16", "fp32"]


def test_encode(case, suite):
    model.encode(suite, case, DOCUMENTS[suite.mode])


def test_query(case, suite):
    model.query(suite, case)


@pytest.mark.skipif(
    not importable("faiss") and not torch.cuda.is_available(), reason="exact search on a CPU is faiss's"
)
def test_search(suite):
    model.find(suite)
