"""Whole models: a corpus embedded, one query answered; ours and what people use today, each library at its best."""

from collections.abc import Sequence
from functools import partial

from bench.cases import backbone, search, texts
from bench.contenders import embedding, our_model, sentence_transformers, transformers
from bench.contenders.embedding import Embed
from bench.contenders.our_layer import backend
from bench.harness.machine import importable
from bench.harness.record import OURS
from bench.harness.suite import Suite
from bench.harness.timing import one_at_a_time


def encode(suite: Suite, precision: str, count: int) -> None:
    """Documents to embeddings, tokenising included."""
    corpus = texts.documents(count)
    found, chosen = embedders(suite, precision, corpus, False)
    calls = {name: partial(embed, corpus, False) for name, embed in found.items()}
    keep(suite, f"encode {count} documents {precision}", suite.time(calls), chosen, documents=count)


def query(suite: Suite, precision: str) -> None:
    """One query: tokenise, encode."""
    asked = queries(suite)
    found, chosen = embedders(suite, precision, asked, True)
    calls = {name: one_at_a_time(partial(embed, is_query=True), asked) for name, embed in found.items()}
    keep(suite, f"one query {precision}", suite.time(calls, latency=True), chosen, latency=True)


def find(suite: Suite) -> None:
    """One query end to end: tokenise, encode, the ten nearest of a corpus, exactly."""
    asked = queries(suite)
    found, chosen = embedders(suite, "bf16", asked, True)
    calls = search.searches(found, asked, suite.device)
    keep(suite, f"search {search.CORPUS} documents bf16", suite.time(calls, latency=True), chosen, latency=True)


def queries(suite: Suite) -> list[str]:
    return texts.queries(4 if suite.smoke else 64)


def embedders(
    suite: Suite, precision: str, asked: Sequence[str], is_query: bool
) -> tuple[dict[str, Embed], dict[str, str]]:
    """-> contenders, which embed these texts as they should, and how each library was at its best on them;
    sentence-transformers in fp32, its default, too, and ours with experts in bf16"""
    folder, device = backbone.folder(suite.smoke), suite.device
    found = {OURS: our_model.embedder(folder, "dense", precision, device)}
    for variant in ("sb-moe", "moe") if precision != "fp32" else ():
        found[f"{OURS} {variant}"] = our_model.embedder(folder, variant, precision, device)
    peers = {f"transformers {precision}": partial(transformers.embedder, folder, precision, device)}
    if importable("sentence_transformers"):
        for kind in dict.fromkeys([precision, "fp32"]):
            peers[f"sentence-transformers {kind}"] = partial(sentence_transformers.embedder, folder, kind, device)
    chosen = {}
    for name, make in peers.items():
        known = suite.chosen.get(name, "")
        found[name], chosen[name] = embedding.at_its_best(make, asked, is_query, known=known)
    embedding.check(found, asked, is_query, transformers.embedder(folder, "fp32", device), precision)
    return found, chosen


def keep(suite: Suite, name: str, samples: dict[str, list[float]], chosen: dict[str, str], **settings: object) -> None:
    about = {"backbone": backbone.name(suite.smoke), "texts": texts.source(), "backend": backend(suite.device)}
    skipped = {} if importable("sentence_transformers") else {"sentence-transformers": "is not importable"}
    suite.keep("model", name, samples, settings=about | settings, skipped=skipped, chosen=chosen)
