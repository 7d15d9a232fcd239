"""Whole models: a corpus embedded, one query answered, a training step; ours and what people use today."""

from functools import partial

import pytest
import torch

from bench.cases import backbone, search, texts
from bench.contenders import embedding, our_model, sentence_transformers, transformers
from bench.contenders.our_layer import backend
from bench.harness.machine import importable
from bench.harness.record import OURS
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
    skipped = {} if importable("sentence_transformers") else {"sentence-transformers": "is not importable"}
    return {"settings": told, "skipped": skipped}


def embedders(folder, precision, device):
    """Contender -> its function; sentence-transformers in fp32, its default, too, and ours with experts in bf16."""
    found = {OURS: our_model.embedder(folder, "dense", precision, device)}
    for variant in ("sb-moe", "moe") if precision != "fp32" else ():
        found[f"{OURS} {variant}"] = our_model.embedder(folder, variant, precision, device)
    found[f"transformers {precision}"] = transformers.embedder(folder, precision, device)
    if importable("sentence_transformers"):
        for kind in dict.fromkeys([precision, "fp32"]):
            found[f"sentence-transformers {kind}"] = sentence_transformers.embedder(folder, kind, device)
    return found


def proved(suite, folder, precision, asked, is_query):
    """The contenders, which embed these texts as they should."""
    found = embedders(folder, precision, suite.device)
    embedding.check(found, asked, is_query, transformers.embedder(folder, "fp32", suite.device), precision)
    return found


def test_encode(case, suite, folder):
    """Documents to embeddings, tokenising included."""
    corpus = texts.documents(DOCUMENTS[suite.mode])
    found = proved(suite, folder, case, corpus, False)
    calls = {name: partial(embed, corpus, False) for name, embed in found.items()}
    name = f"encode {len(corpus)} documents {case}"
    suite.keep("model", name, suite.time(calls), headline=True, **about(suite, documents=len(corpus)))


def test_query(case, suite, folder):
    """One query: tokenise, encode."""
    asked = texts.queries(4 if suite.smoke else 64)
    found = proved(suite, folder, case, asked, True)
    calls = {name: one_at_a_time(partial(embed, is_query=True), asked) for name, embed in found.items()}
    suite.keep("model", f"one query {case}", suite.time(calls, latency=True), **about(suite, latency=True))


@pytest.mark.skipif(
    not importable("faiss") and not torch.cuda.is_available(), reason="exact search on a CPU is faiss's"
)
def test_search(suite, folder):
    """One query end to end: tokenise, encode, the ten nearest of a corpus, exactly."""
    asked = texts.queries(4 if suite.smoke else 64)
    calls = search.searches(proved(suite, folder, "bf16", asked, True), asked, suite.device)
    name = f"search {search.CORPUS} documents bf16"
    suite.keep("model", name, suite.time(calls, latency=True), headline=True, **about(suite, latency=True))
