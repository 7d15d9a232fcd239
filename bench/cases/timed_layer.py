"""A layer timed: its contenders, proved right, on the same inputs."""

from collections.abc import Callable, Sequence

import torch

from bench.cases.layer import LayerCase
from bench.contenders.layers import Prepared, prepare
from bench.harness.peaks import peak_of
from bench.harness.suite import Suite
from bench.harness.target import Target


def measure(suite: Suite, case: LayerCase, only: Sequence[str] | None = None, targets: Sequence[Target] = ()) -> None:
    """`only`: the contenders that may take part, if not all."""
    prepared = prepare(case, suite.device, suite.smoke, only)
    keep(suite, prepared, suite.time(prepared.calls()), targets, str(case))


def keep(
    suite: Suite, prepared: Prepared, samples: dict[str, list[float]], targets: Sequence[Target], name: str
) -> None:
    work = {"flops": prepared.case.flops, "peak": peak_of(prepared.case.dtype)}
    about = dict(settings=prepared.case.settings(suite.device), skipped=prepared.skipped, work=work)
    suite.keep("layer", name, samples, targets, **about)


def graphed(call: Callable[[], object]) -> Callable[[], None]:
    """The same call, recorded once and replayed: without the cost of its launches."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
