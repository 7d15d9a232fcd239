"""Whole models: a corpus embedded, one query answered, a training step; ours and what people use today."""

from functools import partial

import pytest
import torch

from bench.cases import backbone, search, texts
from bench.contenders import embedding, transformers
from bench.contenders.models import embedders, why_skipped
from bench.contenders.our_layer import backend
from bench.harness.machine import importable
from bench.harness.timing import one_at_a_time

moe_retrieval = pytest.importorskip("moe_retrieval")
DOCUMENTS = {"smoke": 6, "quick": 12, "full": 96}


def cases(mode, device):
    """Precisions"""
    return ["bf16"] if mode == "quick" else ["bf16", "fp32"]


@pytest.fixture
def folder(suite):
    return backbone.folder(suite.smoke)


def about(suite, **settings):
    ours = backend(suite.device, torch.bfloat16)
    told = {"backbone": backbone.name(suite.smoke), "texts": texts.source(), "backend": ours, **settings}
    return {"settings": told, "skipped": why_skipped()}


def test_encode(case, suite, folder):
    """Documents to embeddings, tokenising included."""
    corpus = texts.documents(DOCUMENTS[suite.mode])
    found = embedders(folder, case, suite.device)
    truth = transformers.embedder(folder, "fp32", suite.device)
    embedding.check(found, corpus, False, truth, embedding.DTYPES[case])
    calls = {name: partial(embed, corpus, False) for name, embed in found.items()}
    name = f"encode {len(corpus)} documents {case}"
    suite.compare("model", name, calls, headline=True, **about(suite, documents=len(corpus)))


def test_query(case, suite, folder):
    """One query: tokenise, encode."""
    found, asked = _prepared_queries(case, suite, folder)
    calls = {name: one_at_a_time(partial(embed, is_query=True), asked) for name, embed in found.items()}
    suite.compare("model", f"one query {case}", calls, latency=True, **about(suite, latency=True))


@pytest.mark.skipif(
    not importable("faiss") and not torch.cuda.is_available(), reason="exact search on a CPU is faiss's"
)
def test_search(suite, folder):
    """One query end to end: tokenise, encode, the ten nearest of a corpus, exactly."""
    found, asked = _prepared_queries("bf16", suite, folder)
    vectors = search.vectors(found["kernels"](asked[:1], True).shape[1])
    ways = search.searches(found, vectors, suite.device)
    search.check(ways, found, vectors, asked)
    calls = {name: one_at_a_time(way, asked) for name, way in ways.items()}
    suite.compare(
        "model",
        f"search {search.CORPUS} documents bf16",
        calls,
        latency=True,
        headline=True,
        **about(suite, latency=True),
    )


def _prepared_queries(precision, suite, folder):
    asked = texts.queries(4 if suite.smoke else 64)
    found = embedders(folder, precision, suite.device)
    truth = transformers.embedder(folder, "fp32", suite.device)
    embedding.check(found, asked, True, truth, embedding.DTYPES[precision])
    return found, asked
