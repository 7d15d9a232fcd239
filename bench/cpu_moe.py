"""The native CPU backend against its targets: every peer on the same weights, interleaved in one process.

    python -m bench.cpu_moe [--processes N] [--seconds S] [--only TEXT] [--smoke]

writes bench/results/MACHINE-cpu-moe.json. A ratio is the median over fresh processes of a peer's time divided by ours;
that of the fastest processes is kept beside it, which is what a machine that does other things meanwhile still shows.
Every contender is proven right in fp64 before it is timed. Plain PyTorch is there twice: as the loops of the peers, and
as our own eager backend, to which none of the main cases may lose.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import kernels
from bench.cases import timed_layer
from bench.cases.layer import BASE, SBMOE, WIDE, LayerCase, at, step
from bench.contenders.layers import prepare
from bench.harness import command
from bench.harness.record import BASELINE, LIMIT, OURS
from bench.harness.suite import Suite
from bench.harness.target import BEST, Target

BF16, FP32 = torch.bfloat16, torch.float32
EAGER = f"{OURS} eager"
"""Our layer on plain PyTorch."""
NOT_BELOW = [Target(OURS, plain, least=0.95) for plain in (EAGER, BASELINE)]
"""What `auto` picks may not lose to PyTorch."""


def against(dense: float | None, peer: float) -> list[Target]:
    """At least this many times as fast as the dense FFN of equal active FLOPs, and as the best peer."""
    targets = [Target(OURS, BEST, least=peer)]
    return targets if dense is None else [Target(OURS, LIMIT, least=dense), *targets]


LARGE = replace(BASE, tokens=16384, backward=True)
MOE = {
    BASE: against(1.0, 1.25),
    replace(BASE, dtype=FP32): against(1.6, 1.6),
    replace(BASE, backward=True): against(1.0, 1.25),
    replace(BASE, dtype=FP32, backward=True): against(1.4, 1.4),
    WIDE: against(1.1, 1.1),
    replace(BASE, tokens=512): against(0.9, 1.3),
    replace(BASE, tokens=512, backward=True): against(0.9, 1.3),
    replace(WIDE, tokens=64, top_k=1, backward=True): against(None, 1.3),
    replace(BASE, tokens=1): against(None, 2.0),
    replace(BASE, tokens=1, dtype=FP32): against(None, 2.0),
    LARGE: [],
    replace(LARGE, dtype=FP32): [],
}
THRICE = [Target(OURS, "every expert", least=3.0)]
CLIFFS = {
    replace(BASE, experts=256): [],
    replace(SBMOE, tokens=64, hidden=768, ffn=384, backward=True): [],
    replace(SBMOE, tokens=1024): THRICE,
    replace(SBMOE, tokens=1024, backward=True): [],
}
"""Where a layer costs more than its active experts: docs/cpu.md says why."""
POOLED = [
    replace(SBMOE, tokens=t, hidden=h, ffn=h // 2, dtype=d)
    for h in (384, 768)
    for t in (64, 1024)
    for d in (FP32, BF16)
]
"""Forward, against what the paper's code does."""
EXPERTS = (4, 8, 16, 64, 256)


def main_case(suite: Suite, case: LayerCase, targets: Sequence[Target], name: str) -> None:
    prepared = prepare(case, suite.device, suite.smoke)
    calls = prepared.calls()
    calls[EAGER] = partial(on_eager, calls[OURS])
    timed_layer.keep(suite, prepared, suite.time(calls), [*targets, *NOT_BELOW], name)


def on_eager(call: Callable[[], Tensor]) -> Tensor:
    with kernels.use_backend("eager"):
        return call()


def pooled(suite: Suite, case: LayerCase, name: str) -> None:
    timed_layer.measure(suite, case, (OURS, "every expert"), THRICE)


def experts_curve(suite: Suite, name: str) -> None:
    """The same tokens over more experts: the cost of 8, as long as their weights fit into the last cache."""
    calls, weights = {}, {}
    for number in EXPERTS:
        case = replace(BASE.shrunk(), experts=min(number, 16)) if suite.smoke else replace(BASE, experts=number)
        torch.manual_seed(0)
        built = case.build(suite.device)
        x, _ = case.inputs(built)
        calls[at(OURS, number)] = step(built, x, None)
        weights[at(OURS, number)] = built.experts.up_weight.nbytes + built.experts.down_weight.nbytes
    targets = [Target(at(OURS, number), at(OURS, 8), most=1.25) for number in EXPERTS if number != 8]
    suite.keep("layer", name, suite.time(calls), targets, ours="", figures={"weight_bytes": weights})


def cases(suite: Suite) -> dict[str, Callable[[str], None]]:
    return {
        **{str(case): partial(pooled, suite, case) for case in POOLED},
        **{str(case): partial(main_case, suite, case, targets) for case, targets in (MOE | CLIFFS).items()},
        f"experts: {BASE}": partial(experts_curve, suite),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    command.main("cpu-moe", "bench.cpu_moe:cases", __doc__, arguments)


if __name__ == "__main__":
    main()
