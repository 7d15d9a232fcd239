"""A whole encoder beside what else there is: a corpus embedded, and one query answered."""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

from bench.cases import backbone, search, stages, texts
from bench.contenders import embedding, our_model, runtimes, sentence_transformers, transformers
from bench.contenders.embedding import ATTENTIONS, DTYPES, Embed
from bench.harness.peaks import peak_of
from bench.harness.record import OURS
from bench.harness.suite import Suite
from bench.harness.target import BEST, Target
from bench.harness.timing import Timings

if TYPE_CHECKING:
    from moe_retrieval.retrieval.model import Model

PEER = "sentence-transformers"
OURS_BF16, OURS_FP32, PEER_BF16, PEER_FP32 = f"{OURS} bf16", f"{OURS} fp32", f"{PEER} bf16", f"{PEER} fp32"
ENCODE = [
    Target(OURS_BF16, PEER_FP32, least=5.0),
    Target(OURS_BF16, PEER_BF16, least=2.1),
    Target(OURS_FP32, PEER_FP32, least=1.8),
    Target(OURS_BF16, "openvino bf16", least=1.5),
]
QUERY = [Target(OURS_BF16, PEER_FP32, least=2.5), Target(OURS_BF16, BEST, least=2.5)]
TRAINING = [Target(OURS, PEER, least=3.0)]
IN_A_ROW = 0.2
"""Seconds of queries, of which a sample is the mean."""


class Encoders:
    """The contenders, and what proves them right, from the same weights."""

    def __init__(self, suite: Suite):
        self.folder, self.device = backbone.folder(suite.smoke), suite.device
        self.asked = texts.queries(4 if suite.smoke else 64)
        self.runtimes, self.skipped = runtimes.embedders(self.folder)
        self.chosen = suite.chosen
        self.compiles = not suite.smoke
        """Half a minute each"""

    @cached_property
    def ours(self) -> "dict[str, Model]":
        """By precision; loaded when first asked for: who lists cases, and a step of training, need none."""
        return {name: our_model.build(self.folder, "dense", name, self.device) for name in DTYPES}

    @cached_property
    def truth(self) -> Embed:
        return transformers.embedder(self.folder, "fp32", self.device)

    def proved(self, asked: Sequence[str], is_query: bool, each: int = 1) -> tuple[dict[str, Embed], dict[str, str]]:
        """-> what embeds these texts as it should, by each so many-th of them, and how the peers were at their best"""
        found, chosen = {f"{OURS} {name}": our_model.embed_with(model) for name, model in self.ours.items()}, {}
        peers = dict(self.runtimes)
        for name in DTYPES:
            peers[f"{PEER} {name}"] = partial(sentence_transformers.embedder, self.folder, name, self.device)
            if self.compiles:
                make = partial(transformers.compiled_embedder, self.folder, name, self.device)
                peers[f"transformers compiled {name}"] = make
        for name, make in peers.items():
            attentions = ATTENTIONS if name.startswith(PEER) else ()
            known = self.chosen.get(name, "")
            found[name], chosen[name] = embedding.at_its_best(make, asked, is_query, attentions, known)
        embedding.check(found, asked[::each], is_query, self.truth)
        return found, chosen


def encode(suite: Suite, encoders: Encoders, corpus: Sequence[str], name: str) -> None:
    found, chosen = encoders.proved(corpus, False, each=8)
    calls = {name: partial(embed, corpus, False) for name, embed in found.items()}
    # The proof has warmed them up: it takes more than one of any contender's batches.
    samples = suite.time(calls, min_rounds=2, min_sample=0.0, warm_ups=0)
    seconds = {name: Timings(samples).median(name) for name in calls}
    model = encoders.ours["bf16"]
    flops = our_model.flops(model, corpus)
    types = {name: DTYPES[name.split()[-1]] for name in calls if name.split()[-1] in DTYPES}
    limits = {name: suite.peaks[peak_of(dtype)] for name, dtype in types.items()}
    figures = {
        "gflops": {name: flops / seconds[name] / 1e9 for name in calls},
        "share_of_matrix_rate": {name: flops / seconds[name] / limits[name] for name in limits},
        "profile": stages.profile(model, corpus),
    }
    about = dict(settings={"documents": len(corpus)}, skipped=encoders.skipped, chosen=chosen, figures=figures)
    suite.keep("encoder", name, samples, ENCODE, ours=OURS_BF16, **about)


def query(suite: Suite, encoders: Encoders, name: str) -> None:
    """Queries go to one contender in a row, as in a server: if they took turns, each would find its weights driven out
    of the cache, and the threads of the one before still waiting for more."""
    found, chosen = encoders.proved(encoders.asked, True)
    samples = suite.time(search.searches(found, encoders.asked, suite.device), min_sample=IN_A_ROW)
    about = dict(settings={"seconds_in_a_row": IN_A_ROW}, skipped=encoders.skipped, chosen=chosen)
    suite.keep("encoder", name, samples, QUERY, ours=OURS_BF16, **about)
