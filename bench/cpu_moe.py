"""The native CPU backend against its targets: every peer on the same weights, interleaved in one process.

python -m bench.cpu_moe [--seconds S] [--only TEXT]          writes bench/results/cpu_moe.json

A ratio is the median over rounds of a peer's time divided by ours; the fastest call of each is kept beside it, which is
what a machine that does other things meanwhile still shows. Every contender is proven right in fp64 before it is timed.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import kernels
from bench.correct import prove
from bench.layer_case import LayerCase, contenders, step
from bench.machine import describe, peaks
from bench.record import LIMIT, OURS
from bench.timing import Timings, interleave

RESULTS = Path(__file__).parent / "results" / "cpu_moe.json"
CPU = torch.device("cpu")
BF16, FP32 = torch.bfloat16, torch.float32

BASE = LayerCase()
WIDE = replace(BASE, hidden=768, ffn=3072)
SBMOE = LayerCase("SBMoE", hidden=384, ffn=192, experts=6, top_k=1, activation="relu")


@dataclass(frozen=True)
class Target:
    """At least this many times as fast as torch's dense FFN of equal active FLOPs, and as the best peer."""

    case: LayerCase
    dense: float | None = None
    peer: float | None = None
    against: tuple[str, ...] = ("loop", "hf eager", "hf batched_mm", "hf grouped_mm")


TARGETS = [
    Target(BASE, 1.0, 1.25),
    Target(replace(BASE, dtype=FP32), 1.6, 1.6),
    Target(replace(BASE, backward=True), 1.0, 1.25),
    Target(replace(BASE, dtype=FP32, backward=True), 1.4, 1.4),
    Target(WIDE, 1.1, 1.1),
    Target(replace(BASE, tokens=512), 0.9, 1.3),
    Target(replace(BASE, tokens=512, backward=True), 0.9, 1.3),
    Target(replace(WIDE, tokens=64, top_k=1, backward=True), None, 1.3),
    Target(replace(BASE, tokens=1), None, 2.0),
    Target(replace(BASE, tokens=1, dtype=FP32), None, 2.0),
    *(
        Target(replace(SBMOE, tokens=t, hidden=h, ffn=h // 2, dtype=d), None, 3.0, ("every expert",))
        for h in (384, 768)
        for t in (64, 1024)
        for d in (FP32, BF16)
    ),
]
EXPERTS = (4, 8, 16, 64, 256)


def measure(case: LayerCase, only: tuple[str, ...], seconds: float) -> tuple[Timings, dict[str, str]]:
    torch.manual_seed(0)
    layer = case.build(CPU)
    x, grad_y = case.inputs(layer)
    taking_part, skipped = contenders(case, layer, only)
    taking_part, refused = prove(case, layer, taking_part, x, grad_y, strict=False)
    calls = {name: step(module, x, grad_y if case.backward else None) for name, module in taking_part.items()}
    return interleave(calls, seconds=seconds, min_rounds=9), skipped | refused


def judge(target: Target, seconds: float) -> dict[str, object]:
    timings, skipped = measure(target.case, (OURS, LIMIT, *target.against), seconds)
    names = list(timings.seconds)
    peers = [name for name in names if name in target.against]
    best = min(peers, key=timings.median)
    fastest = min(peers, key=timings.minimum)
    ours = timings.minimum(OURS)
    return {
        "case": str(target.case),
        "median_ms": {name: round(timings.median(name) * 1e3, 4) for name in names},
        "minimum_ms": {name: round(timings.minimum(name) * 1e3, 4) for name in names},
        "best_peer": best,
        "against_dense": {
            "target": target.dense,
            "median": round(timings.ratio(OURS, LIMIT), 3),
            "minimum": round(timings.minimum(LIMIT) / ours, 3),
        },
        "against_best_peer": {
            "target": target.peer,
            "median": round(timings.ratio(OURS, best), 3),
            "minimum": round(timings.minimum(fastest) / ours, 3),
        },
        "gflops": round(target.case.flops / timings.median(OURS) / 1e9, 1),
        "rounds": len(timings.seconds[OURS]),
        "skipped": skipped,
    }


def experts_curve(seconds: float) -> dict[str, object]:
    """The same tokens over more experts: the cost of 8, as long as their weights fit into the last cache."""
    calls, size = {}, {}
    for number in EXPERTS:
        case = replace(BASE, experts=number)
        torch.manual_seed(0)
        layer = case.build(CPU)
        x, _ = case.inputs(layer)
        calls[str(number)] = step(layer, x, None)
        size[str(number)] = layer.experts.up_weight.nbytes + layer.experts.down_weight.nbytes
    timings = interleave(calls, seconds=seconds, min_rounds=9)
    return {
        "case": "experts: " + str(BASE),
        "target": "at most 1.25 times the cost of 8 experts",
        "weight_bytes": size,
        "median_ms": {name: round(timings.median(name) * 1e3, 4) for name in calls},
        "minimum_ms": {name: round(timings.minimum(name) * 1e3, 4) for name in calls},
        "cost_over_8": {name: round(timings.ratio(name, "8") ** -1, 3) for name in calls},
        "minimum_over_8": {name: round(timings.minimum(name) / timings.minimum("8"), 3) for name in calls},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="a case (default: %(default)s)")
    parser.add_argument("--only", default="", help="only cases whose name contains this; nothing is written then")
    arguments = parser.parse_args()
    with kernels.use_backend("native"):
        from kernels.cpu import backend

        results = []
        for target in TARGETS:
            if arguments.only in str(target.case):
                results.append(judge(target, arguments.seconds))
                show(results[-1])
        if not arguments.only:
            results.append(experts_curve(arguments.seconds))
            show(results[-1])
            content = {
                "run": describe(CPU) | {"level": backend.level},
                "peaks": peaks(CPU, (FP32, BF16)),
                "cases": results,
            }
            RESULTS.write_text(json.dumps(content, indent=1) + "\n")


def show(result: dict[str, object]) -> None:
    print(result["case"])
    for key, value in result.items():
        if key not in ("case", "rounds"):
            print(f"    {key:18} {value}")


if __name__ == "__main__":
    main()
