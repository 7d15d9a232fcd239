"""Where the time of embedding a corpus goes, by the names of the ops in the profile.

PyTorch's own ops are put together by what they are for; an op of another library is a row of its own, so that a new
fused op shows without being known here. Self time is the caller's: what an op's threads do meanwhile is within it.
A frozen encoder is one call, which is taken apart for the profile, which costs time that it does not take otherwise.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from bench.contenders.our_model import in_parts

if TYPE_CHECKING:
    from bench.contenders.our_model import Model

GROUPS = {
    "matrix products": ("mm", "linear", "matmul"),
    "norms": ("norm",),
    "activation": ("gelu", "relu", "silu", "tanh"),
    "attention": ("attention", "softmax"),
    "embedding lookups": ("embedding", "index_select"),
    "pooling": ("segment_reduce",),
    "copies and casts": ("copy", "contiguous", "clone", "cat"),
    "sums": ("add",),
}
OTHER = "other ops"
TOKENIZE, REST = "tokenise", "python, and what no op does"


def stage(op: str) -> str:
    """
    >>> stage("aten::addmm"), stage("aten::cumsum"), stage("moe_retrieval_cpu::attention")
    ('matrix products', 'other ops', 'moe_retrieval_cpu::attention')
    """
    namespace, _, name = op.rpartition("::")
    if namespace not in ("aten", "mkldnn", ""):
        return op
    return next((group for group, parts in GROUPS.items() if any(part in name for part in parts)), OTHER)


def profile(model: "Model", corpus: Sequence[str]) -> dict[str, object]:
    """Of `model.encode_document(corpus)`, where it is one window of texts: it is tokenised before anything else.

    It should have run before.
    """
    start = time.perf_counter()
    model.tokenizer.encode_batch(list(corpus), model.usage.doc_length)
    tokenizing = time.perf_counter() - start
    with in_parts(model), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        model.encode_document(corpus)
        wall = time.perf_counter() - start
    ops = {event.key: event.self_cpu_time_total / 1e6 for event in profiler.key_averages()}
    return table(wall, tokenizing, ops)


def table(wall: float, tokenizing: float, ops: Mapping[str, float]) -> dict[str, object]:
    """Seconds to rows, the largest first: a stage, its milliseconds, its share, and those of its ops that matter."""
    seconds: dict[str, float] = defaultdict(float, {TOKENIZE: tokenizing, REST: wall - tokenizing - sum(ops.values())})
    members = defaultdict(list)
    for op in sorted(ops, key=lambda op: -ops[op]):
        seconds[stage(op)] += ops[op]
        if ops[op] >= 1e-3 * wall:
            members[stage(op)].append(op)
    rows = [
        {"stage": name, "ms": round(spent * 1e3, 2), "share": round(spent / wall, 4), "ops": members[name]}
        for name, spent in sorted(seconds.items(), key=lambda row: -row[1])
    ]
    return {"wall_ms": round(wall * 1e3, 2), "stages": rows}
