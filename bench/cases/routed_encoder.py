"""What experts inside an encoder add to it: upcycled from the dense one, which they equal until they are trained."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from bench.cases import training
from bench.cases.encoder import Encoders
from bench.cases.pooled_layer import each_alone
from bench.contenders import embedding, our_model
from bench.contenders.embedding import QUERY_LENGTH
from bench.harness.record import OURS
from bench.harness.suite import Suite
from bench.harness.target import Target

if TYPE_CHECKING:
    from moe_retrieval.retrieval.model import Model

DENSE, TOP_1, TOP_2 = f"{OURS} dense", f"{OURS} moe top-1", f"{OURS} moe top-2"
KEPT = {TOP_1: 0.97, TOP_2: 0.95}
"""The least share of the documents a second that the FLOPs allow."""
QUERY = [Target(TOP_1, DENSE, most=1.05)]
TRAINING = [Target(TOP_1, DENSE, most=1.10)]


def models(encoders: Encoders) -> dict[str, "Model"]:
    routed = {TOP_1: 1, TOP_2: 2}
    make = partial(our_model.build, encoders.folder, "moe", "bf16", encoders.device)
    return {DENSE: encoders.ours["bf16"]} | {name: make(top_k=k) for name, k in routed.items()}


def encode(suite: Suite, encoders: Encoders, texts: Sequence[str], name: str) -> None:
    found = models(encoders)
    embedders = {name: our_model.embed_with(model) for name, model in found.items()}
    embedding.check(embedders, texts, False, encoders.truth)
    calls = {name: partial(embed, texts, False) for name, embed in embedders.items()}
    samples = suite.time(calls, min_rounds=3, min_sample=0.0, warm_ups=0)  # the proof has warmed them up
    flops = {name: our_model.flops(model, texts) for name, model in found.items()}
    allowed = {name: flops[name] / flops[DENSE] for name in KEPT}
    targets = [Target(name, DENSE, most=allowed[name] / kept) for name, kept in KEPT.items()]
    about = dict(settings={"documents": len(texts)}, figures={"flops": flops, "flops_of_dense": allowed})
    suite.keep("encoder", name, samples, targets, ours=TOP_1, **about)


def query(suite: Suite, encoders: Encoders, name: str) -> None:
    """As in `pooled_layer`, queries go to one model in a row."""
    found = models(encoders)
    asked = encoders.ours["bf16"].tokenizer.encode_batch(encoders.asked, QUERY_LENGTH)
    embedders = {name: our_model.embed_with(model) for name, model in found.items()}
    embedding.check(embedders, encoders.asked, True, encoders.truth)
    calls = {name: partial(each_alone, model.embed_tokens, asked) for name, model in found.items()}
    samples = suite.time(calls, min_sample=0.0)
    suite.keep("encoder", name, samples, QUERY, ours=TOP_1)


def training_step(suite: Suite, encoders: Encoders, pairs: int, name: str) -> None:
    names = tuple(suite.taking_part(dict.fromkeys((DENSE, TOP_1, TOP_2))))
    job = training.Job(encoders.folder, pairs, 1 if suite.smoke else 3, names)
    samples = training.measure(suite.device, job)
    suite.keep("encoder", name, samples, TRAINING, ours=TOP_1, settings={"pairs": pairs})
