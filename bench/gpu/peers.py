"""Layers against their peers on the device: forward and forward+backward, with launches and replayed from a graph, and
the memory that each takes at its peak.

    python -m bench.gpu.peers OUTPUT.jsonl [--only TEXT] [--small]

The times are also in OUTPUT.json, in the benchmark's own format, which is written anew with each case.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from bench.cases import memory, timed_layer
from bench.cases.layer import BASE, LayerCase
from bench.contenders.layers import Prepared, prepare
from bench.gpu import saved
from bench.harness.machine import describe
from bench.harness.record import Case, Run
from bench.harness.suite import Suite

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOKENS, HIDDEN = (4096, 16384, 65536), (384, 768)
SECONDS = 1.0
"""That the contenders of a case are timed, all together; to prove them takes as long."""


def cases() -> Iterator[LayerCase]:
    """The smaller ones first: what is cut is what takes long."""
    for tokens in TOKENS:
        for hidden in HIDDEN:
            sizes = replace(BASE, tokens=tokens, hidden=hidden, ffn=4 * hidden)
            for case in (sizes, replace(sizes, activation="swiglu", bias=False)):
                yield from (case, replace(case, backward=True))


def with_graphs(prepared: Prepared) -> dict[str, Callable[[], Any]]:
    """Each contender as it is and, where its call can be captured, replayed from a graph."""
    calls: dict[str, Callable[[], Any]] = {}
    for name, call in prepared.calls().items():
        calls[name] = call
        if DEVICE.type != "cuda":
            continue
        try:
            calls[f"{name} in a CUDA graph"] = timed_layer.graphed(call)
        except RuntimeError as error:
            prepared.skipped[f"{name} in a CUDA graph"] = str(error).partition("\n")[0]
    return calls


def measure(suite: Suite, case: LayerCase) -> dict[str, Any]:
    prepared = prepare(case, suite.device, suite.smoke)
    peaks = {}
    if DEVICE.type == "cuda":
        peaks = {name: memory.peak_allocated(call, DEVICE) for name, call in prepared.calls().items()}
    samples = suite.time(with_graphs(prepared))
    timed_layer.keep(suite, prepared, samples, (), str(case))
    kept: Case = suite.cases[-1]
    kept.figures["peak_allocated"] = peaks
    microseconds = {name: round(1e6 * kept.timings.median(name), 1) for name in kept.samples}
    return {"microseconds": microseconds, "peak_allocated": peaks, "skipped": prepared.skipped}


def main() -> None:
    options = saved.parser(__doc__).parse_args()
    kept = saved.cases_of(options)
    suite = Suite("smoke" if options.small else "quick", DEVICE, seconds=SECONDS)
    about = describe(DEVICE) | {"mode": suite.mode, "partial": True, "skipped": {}}

    def run(case: LayerCase) -> dict[str, Any]:
        found = measure(suite, case)
        Run(about, suite.peaks, suite.cases).save(options.output.with_suffix(".json"))
        return found

    for case in list(cases())[:: 12 if options.small else 1]:
        kept.run(str(case), lambda case=case: run(case))
    kept.end()


if __name__ == "__main__":
    main()
