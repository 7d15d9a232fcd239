"""All that is found out about a model and a collection, as `analysis.json` has it (see `moe_retrieval.analyze`)."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from kernels.layers import RoutedLayer
from moe_retrieval.analysis.differences import describe_differences
from moe_retrieval.analysis.domains import Domains, find_domains
from moe_retrieval.analysis.history import Event, describe_balance, find_instability, read_log
from moe_retrieval.analysis.load import describe_load
from moe_retrieval.analysis.nearness import describe_nearness
from moe_retrieval.analysis.observation import SIDES, Observation, Observer, Side
from moe_retrieval.analysis.projection import describe_map
from moe_retrieval.analysis.queries import describe_queries
from moe_retrieval.analysis.redundancy import describe_redundancy
from moe_retrieval.analysis.removal import Ranked, describe_removals, removable
from moe_retrieval.analysis.terms import top_terms
from moe_retrieval.data import Collection
from moe_retrieval.data.records import Texts
from moe_retrieval.evaluation.comparison import read_other
from moe_retrieval.evaluation.metrics import evaluate_run
from moe_retrieval.evaluation.ranking import candidate_rows, embeddings_run, model_run
from moe_retrieval.evaluation.results import kept_run, provenance
from moe_retrieval.evaluation.runs import Run
from moe_retrieval.evaluation.table import TESTED
from moe_retrieval.retrieval.model import Model, load
from moe_retrieval.training import watch
from moe_retrieval.training.watch import Finding, expert_likeness


class Question(NamedTuple):
    """What a model is asked."""

    collection: Collection
    split: str
    setting: str


class Other(NamedTuple):
    """What a model is compared with."""

    name: str
    run: Run


def rank_other(question: Question, name: str, precision: str) -> Other:
    """`name` is a run.trec or a model; what an evaluation of the model left beside it is used, if it is of the same."""
    if Path(name).is_file():
        return Other(name, read_other(name, *question))
    model = load(name, precision)
    run = kept_run(Path(name), provenance(model, *question))
    return Other(name, model_run(model, *question, shard=False) if run is None else run)


def study(model: Model, folder: Path, question: Question, other: Other | None, removals: int | None) -> dict[str, Any]:
    """`folder` is the model's own, with the log of its training; `removals` is how many experts are removed, one at a
    time: None is all where that is quick."""
    collection, split, setting = question
    candidates = candidate_rows(collection, split, setting)
    domains = find_domains(collection, split, candidates)
    observer = Observer(model, len(domains.names))
    began = time.perf_counter()
    sides = _observe(observer, question, domains)
    seconds = time.perf_counter() - began
    embeddings = [sides[side].embeddings_NH for side in SIDES]
    run = embeddings_run(collection, split, setting, *embeddings, device=model.device)
    ndcg_Q = _ndcg(question, run)
    events = read_log(folder)
    found = {
        "run": provenance(model, *question) | {"variant": model.settings.variant, "against": other and other.name},
        "ndcg_at_10": float(ndcg_Q.mean()),
        "layers": _layers(observer),
        "load": [row for side in SIDES for row in _load(observer, side, sides[side], domains)],
        "balance": describe_balance(events),
        "redundancy": [describe_redundancy(name, layer, x_SH) for name, layer, x_SH in _sampled(observer)],
        "terms": [row for side in SIDES for row in _terms(observer, side, sides[side])],
        "removal": _remove(model, Ranked(*question, *(sides[side] for side in SIDES)), removals, seconds),
        "findings": [
            {"kind": finding.key[0], "where": finding.key[1], "text": finding.text}
            for finding in _findings(observer, sides, folder, events)
        ],
    }
    other_Q = None if other is None else _ndcg(question, other.run)
    found |= describe_queries(list(collection.qrels(split)), sides["query"], domains, ndcg_Q, other_Q)
    found["map"] = describe_map(collection, split, candidates, sides, domains)
    found["nearness"] = describe_nearness(collection, split, candidates, embeddings, domains)
    if other is None or other_Q is None:
        return found
    return found | describe_differences(collection, split, (run, other.run), (ndcg_Q, other_Q))


def _observe(observer: Observer, question: Question, domains: Domains) -> dict[Side, Observation]:
    collection, split, setting = question
    ranked = Texts(collection.documents, candidate_rows(collection, split, setting))
    asked = list(collection.queries(split).values())
    return {
        "query": observer.observe(asked, "query", domains.queries_Q),
        "document": observer.observe(ranked, "document", domains.documents_N),
    }


def _ndcg(question: Question, run: Run) -> np.ndarray:
    return evaluate_run(question.collection.qrels(question.split), run, cuts=(10,)).per_query[TESTED]


# By layer.


def _layers(observer: Observer) -> list[dict[str, Any]]:
    return [
        {
            "layer": name,
            "routes": "texts" if layer is observer.model.retriever.block else "tokens",
            "experts": layer.num_experts,
            "top_k": layer.top_k,
            "chosen_by": "router" if observer.has_router(name) else "hash",
            "noise": isinstance(layer, RoutedLayer) and layer.router.noise is not None,
        }
        for name, layer in observer.layers.items()
    ]


def _load(observer: Observer, side: Side, seen: Observation, domains: Domains) -> Iterator[dict[str, Any]]:
    for name in observer.layers:
        yield from describe_load(name, side, seen.layers[name].share_DE, seen.layers[name].count_D, domains)


def _sampled(observer: Observer) -> Iterator[tuple[str, Any, Any]]:
    """-> the name of a layer, the layer, and inputs of it"""
    for name, layer in observer.layers.items():
        x_SH = observer.samples[name].rows_SH
        if x_SH is not None:
            yield name, layer, x_SH


def _terms(observer: Observer, side: Side, seen: Observation) -> Iterator[dict[str, Any]]:
    for name in observer.layers:
        named = observer.term_names(name)
        for expert, terms in enumerate(top_terms(seen.layers[name].terms.counts_VE)):
            told = [
                {"term": named(term.number), "score": term.score, "count": term.here, "share": term.share}
                for term in terms
            ]
            yield {"layer": name, "side": side, "expert": expert, "terms": told}


def _findings(
    observer: Observer, sides: dict[Side, Observation], folder: Path, events: list[Event]
) -> Iterator[Finding]:
    """By the rules that training watches by, and in its words."""
    for name, layer, x_SH in _sampled(observer):
        if observer.has_router(name) and isinstance(layer.top_k, int):
            slots_E = layer.top_k * torch.cat([sides[side].layers[name].share_DE for side in SIDES]).sum(0)
            if finding := watch.collapse(name, layer.top_k, slots_E):
                yield finding
        device = layer.experts.up_weight.device
        if layer.num_experts > 1 and (finding := watch.redundancy(name, expert_likeness(layer, x_SH.to(device)))):
            yield finding
    yield from find_instability(folder, events)


def _remove(model: Model, ranked: Ranked, removals: int | None, seconds: float) -> dict[str, Any]:
    """`seconds` is what it took to encode everything once."""
    experts = removable(model.retriever, ranked.documents)
    is_quick = ranked.documents.pooled_NH is not None
    wanted = removals if removals is not None else len(experts) if is_quick else 0
    note = None
    if not experts:
        note = "there is no router that could choose another expert"
    elif wanted < len(experts):
        note = f"{wanted} of {len(experts)} experts were removed: --removals {len(experts)} is for all"
        note += "" if is_quick else f", for each of which everything is encoded again, in about {seconds:.0f} s"
    chosen = experts[:wanted]
    return {"note": note, "experts": describe_removals(model, ranked, chosen) if chosen else []}
