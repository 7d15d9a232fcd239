"""What the pooled layer adds to one query, from token ids to its embedding: nothing else hides its price."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

import kernels
from bench.cases.correct import relative_error
from bench.cases.encoder import Encoders
from bench.contenders import our_model
from bench.contenders.embedding import QUERY_LENGTH, TOLERANCE
from bench.harness.record import OURS
from bench.harness.suite import SECONDS, Suite
from bench.harness.target import Target
from bench.harness.timing import Timings

DENSE, SB_MOE, READ = f"{OURS} dense", f"{OURS} sb-moe", f"{OURS} dense, then as many bytes read as the layer has"
TARGETS = [Target(SB_MOE, DENSE, most=1.03)]


def one_query(suite: Suite, encoders: Encoders, name: str) -> None:
    """Queries go to one model in a row, as in a server: if the models took turns, each would find its weights driven
    out of the cache. Both have the same encoder in memory, so that nothing but the layer differs.

    What the layer cannot cost less than is measured beside it: one sum over as many bytes as a query reads of it.
    """
    dense = encoders.ours["bf16"]
    asked = dense.tokenizer.encode_batch(encoders.asked, QUERY_LENGTH)
    model, exact = our_model.with_pooled_layer(dense, encoders.folder)
    check(model, exact, dense, asked)
    weights = {
        "encoder": our_model.weight_bytes(our_model.blocks(dense)),
        "pooled layer": our_model.pooled_layer_bytes(model),
    }
    read = torch.ones(weights["pooled layer"] // 4)

    def embed_and_read(sequences: list[Sequence[int]]) -> None:
        dense.embed_tokens(sequences)
        read.sum()

    contenders = {DENSE: dense.embed_tokens, SB_MOE: model.embed_tokens, READ: embed_and_read}
    calls = {name: partial(each_alone, embed, asked) for name, embed in contenders.items()}
    seconds = 8 * (SECONDS[suite.mode] if suite.seconds is None else suite.seconds)  # a few percent take more rounds
    samples = suite.time(calls, seconds=seconds, min_sample=0.0)
    times = {name: Timings(samples).ratio(DENSE, name) for name in (SB_MOE, READ)}
    figures = {"weight_bytes": weights, "times_of_dense": times}
    suite.keep("encoder", name, samples, TARGETS, ours=SB_MOE, figures=figures)


def each_alone(embed: Callable[[list[Sequence[int]]], object], asked: Sequence[Sequence[int]]) -> None:
    for tokens in asked:
        embed([tokens])


def check(model, exact, dense, asked: Sequence[Sequence[int]]) -> None:
    """Against the same weights in fp32 on the eager backend; the layer must make a difference that would be seen."""
    with kernels.use_backend("eager"):
        expected = exact.embed_tokens(asked)
    error, effect = (relative_error(found.embed_tokens(asked), expected) for found in (model, dense))
    assert error <= TOLERANCE["bf16"] < effect / 2, f"sb-moe is off by {error:.1e}; its layer does {effect:.1e}"
