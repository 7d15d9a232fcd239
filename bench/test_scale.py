"""How cost grows with tokens, experts, the corpus and processes: curves, and the power that fits them.

All sizes of a curve are timed interleaved, like contenders.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

from bench.cases import backbone, texts, training
from bench.cases.correct import check
from bench.cases.layer import BASE, at, step
from bench.contenders import embedding, our_model, sentence_transformers, transformers
from bench.contenders.layers import contenders
from bench.harness import processes
from bench.harness.machine import importable, usable_cores
from bench.harness.record import BASELINE, OURS
from bench.harness.timing import exponent, quantile

PEER = "sentence-transformers"


@dataclass(frozen=True)
class Curve:
    """A layer at several sizes."""

    varied: str
    sizes: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16
    backward: bool = False

    def __str__(self):
        base = replace(BASE, dtype=self.dtype, backward=self.backward)
        return f"{base} over {self.varied} {self.sizes[0]} to {self.sizes[-1]}"


def cases(mode, device):
    if mode == "quick":
        return [Curve("tokens", (1024, 4096)), Curve("experts", (8, 32))]
    largest = 65536 if device.type == "cuda" else 16384
    tokens = tuple(size for size in (256, 1024, 4096, 16384, 65536) if size <= largest)
    return [
        Curve(varied, sizes, dtype, backward)
        for varied, sizes in (("tokens", tokens), ("experts", (4, 8, 16, 64, 256)))
        for dtype in (torch.bfloat16, torch.float32)
        for backward in (False, True)
        if dtype == torch.bfloat16 or varied == "tokens"  # 256 experts in fp32 are 1.2 GB each contender
    ]


def fits(samples: Mapping[str, list[float]], names: list[str], sizes: list[int]) -> dict[str, float]:
    curves = {name: {size: quantile(samples[at(name, size)], 0.5) for size in sizes} for name in names}
    return {name: exponent(curve) for name, curve in curves.items()}


def keep_curve(suite, name, samples, names, sizes, **settings):
    suite.keep("scale", name, samples, ours="", fit=fits(samples, names, sizes), settings={"sizes": sizes} | settings)


def test_layer_curve(case, suite):
    names, calls = [OURS, BASELINE], {}
    for size in case.sizes:
        at_size = replace(BASE, dtype=case.dtype, backward=case.backward, **{case.varied: size})
        at_size = replace(at_size.shrunk(), **{case.varied: min(size, 16)}) if suite.smoke else at_size
        layer = at_size.build(suite.device)
        x, grad_y = at_size.inputs(layer)
        modules, _ = contenders(at_size, layer, only=names)
        check(at_size, layer, modules, x, grad_y)
        calls |= {at(name, size): step(m, x, grad_y if case.backward else None) for name, m in modules.items()}
    samples = suite.time(calls)
    keep_curve(suite, str(case), samples, names, list(case.sizes), varied=case.varied)


def test_corpus_curve(suite):
    """Embedding a corpus of n documents; with one made of the same texts, so that only n grows."""
    sizes = {"smoke": [2, 4], "quick": [8, 32], "full": [16, 32, 64, 128]}[suite.mode]
    folder = backbone.folder(suite.smoke)
    corpus, chosen = texts.documents(sizes[0]) * (sizes[-1] // sizes[0]), {}
    found = {OURS: our_model.embedder(folder, "dense", "bf16", suite.device)}
    if suite.mode == "full" and importable("sentence_transformers"):
        make = partial(sentence_transformers.embedder, folder, "bf16", suite.device)
        found[PEER], chosen[PEER] = embedding.at_its_best(make, corpus, False)
    truth = transformers.embedder(folder, "fp32", suite.device)
    embedding.check(found, corpus[: sizes[0]], False, truth)
    calls = {
        at(name, size): lambda embed=embed, size=size: embed(corpus[:size], False)
        for name, embed in found.items()
        for size in sizes
    }
    keep_curve(suite, "encode a corpus bf16", suite.time(calls), list(found), sizes, texts=texts.source(), **chosen)


def test_processes_curve(suite):
    """One batch shared by more and more processes of as many threads each: -1 is perfect."""
    counts = [count for count in (1, 2, 4) if count <= max(2, usable_cores())]
    counts = [count for count in counts if processes.why_not(count, suite.device) is None]
    if suite.mode != "full":
        pytest.skip("the training step with 1 and 2 processes is in the model group; its curve is part of a full run")
    if len(counts) < 2:
        pytest.skip(processes.why_not(2, suite.device))
    names = (OURS, "transformers")
    job = training.Job(backbone.folder(suite.smoke), pairs=32, rounds=5, contenders=names)
    threads = max(1, usable_cores() // counts[-1])
    samples = {}
    for count in counts:
        ranks = processes.run(training.measure, count, threads, suite.device, job)
        samples |= {at(name, count): ranks[0][name] for name in names}
    what = "training step, 32 pairs bf16, over processes"
    keep_curve(suite, what, samples, list(names), counts, threads=threads)
