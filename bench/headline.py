"""The rows of the README's table: each the median over several fresh processes, with its range.

    python -m bench.headline [--processes 5] [--only TEXT] [--smoke]

In each process all contenders of a case take turns, in another order than in the process before; the first one finds
out how each library is at its best. Where jemalloc or tcmalloc is found (or what $BENCH_ALLOCATORS names), the peers of
the larger cases run a second time under it, and the better one counts. .benchmarks/MACHINE-headline.json is written
after each case, and moves to bench/results when it is whole. A run that was stopped goes on if revision, versions and
the number of processes are the same. `--only` measures cases of such a run again.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from bench.cases import memory, model, pooled_layer, timed_layer, training, workloads
from bench.cases.encoder import TRAINING, Encoders
from bench.cases.layer import BASE, SBMOE, WIDE, LayerCase
from bench.cases.search import CORPUS
from bench.cpu_moe import LARGE, MOE
from bench.harness import allocators, fresh
from bench.harness.machine import describe
from bench.harness.peaks import peaks
from bench.harness.record import Case, case_of
from bench.harness.suite import Suite
from bench.harness.target import Target, judge
from bench.harness.turns import GrowingRun, over_turns
from bench.reports import terminal

CPU = torch.device("cpu")
FP32 = torch.float32
DOCUMENTS, PAIRS = 96, 32
ONE_QUERY = "sb-moe on queries, one at a time, tokens to embedding, bf16"


@dataclass(frozen=True)
class Headline:
    """A case, as it is measured in one process."""

    measure: Callable[[Suite], None]
    seconds: float
    """That a process takes, about, on two quiet cores of a Zen 4."""
    large: bool = False
    """Whether it moves memory that an allocator may keep or give back."""
    targets: Sequence[Target] = ()
    shown: bool = True
    """Whether the README has a row of it."""


def layer(case: LayerCase, seconds: float, large: bool = False) -> dict[str, Headline]:
    return {str(case): Headline(partial(timed_layer.measure, case=case), seconds, large, MOE.get(case, ()))}


def one_query(suite: Suite) -> None:
    pooled_layer.one_query(suite, Encoders(suite), ONE_QUERY)


def encode(precision: str) -> Callable[[Suite], None]:
    return lambda suite: model.encode(suite, precision, 6 if suite.smoke else DOCUMENTS)


def train(count: int) -> Callable[[Suite], None]:
    return lambda suite: training.keep(suite, count, 4 if suite.smoke else PAIRS, 1 if suite.smoke else 3)


SAVED = replace(BASE, dtype=FP32, backward=True)
HEADLINES = {
    **layer(replace(BASE, tokens=1), 9),
    **layer(replace(BASE, tokens=512), 10),
    **layer(replace(BASE, tokens=512, backward=True), 10),
    **layer(BASE, 11),
    **layer(replace(BASE, backward=True), 15, large=True),
    **layer(replace(BASE, dtype=FP32), 12),
    **layer(replace(BASE, dtype=FP32, backward=True), 20, large=True),
    **layer(LARGE, 30, large=True),
    **layer(replace(LARGE, dtype=FP32), 60, large=True),
    **layer(WIDE, 16),
    **layer(replace(BASE, experts=256), 20),
    **layer(replace(SBMOE, tokens=64, hidden=768, ffn=384, backward=True), 10),
    **layer(replace(SBMOE, tokens=1024), 9),
    f"saved for backward: {SAVED}": Headline(partial(memory.saved, case=SAVED), 10),
    f"resident: {workloads.LAYER}": Headline(memory.resident_step, 30, large=True),
    f"encode {DOCUMENTS} documents bf16": Headline(encode("bf16"), 55, large=True),
    f"encode {DOCUMENTS} documents fp32": Headline(encode("fp32"), 45, large=True),
    f"search {CORPUS} documents bf16": Headline(model.find, 25),
    f"training step, {PAIRS} pairs, 1 process bf16": Headline(train(1), 55, large=True, targets=TRAINING),
    f"training step, {PAIRS} pairs, 2 processes bf16": Headline(train(2), 55),
    ONE_QUERY: Headline(one_query, 25, targets=pooled_layer.TARGETS, shown=False),
}
"""By the name of the case."""


def measure(name: str, mode: str, turn: str, kind: str, chosen: str) -> dict[str, Any]:
    """-> the case as JSON has it; called in a fresh process"""
    allocators.check_preloaded()
    suite = Suite(mode, CPU, turn=int(turn), peers_only=kind == "peers", chosen=json.loads(chosen))
    torch.manual_seed(0)
    HEADLINES[name].measure(suite)
    (case,) = suite.cases
    assert case.name == name or suite.smoke, f"{name!r} is called {case.name!r}"
    return asdict(case)


def over_processes(name: str, mode: str, processes: int, found: dict[str, str]) -> Case:
    """The case, under other allocators too if it is a large one."""

    def measured(turn: int, allocator: str, chosen: Mapping[str, str]) -> Case:
        kind, environment = ("peers", {"LD_PRELOAD": found[allocator]}) if allocator else ("all", {})
        known = json.dumps(chosen)
        return case_of(fresh.call("bench.headline:measure", name, mode, str(turn), kind, known, **environment))

    about = HEADLINES[name]
    case = replace(over_turns(measured, processes, list(found) if about.large else ()), headline=about.shown)
    judge(case, about.targets)
    return case


def expected_minutes(names: Sequence[str], processes: int, found: dict[str, str]) -> float:
    seconds = [HEADLINES[name].seconds * (1 + len(found) * HEADLINES[name].large) for name in names]
    return sum(seconds) * processes / 60


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.headline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=5, help="a case (default: %(default)s)")
    parser.add_argument("--only", default="", help="cases whose names contain this, again if they are there")
    parser.add_argument("--smoke", action="store_true", help="small, 2 processes a case; nothing is written")
    chosen = parser.parse_args(arguments)
    if chosen.processes < 1:
        parser.error(f"--processes must be at least 1, got {chosen.processes}")
    if not any(chosen.only in name for name in HEADLINES):
        parser.error(f"--only {chosen.only!r} is in the name of none of: {', '.join(HEADLINES)}")
    mode, processes = ("smoke", 2) if chosen.smoke else ("headline", chosen.processes)
    found = allocators.available()
    about = describe(CPU) | {"mode": mode, "skipped": {}, "processes": processes}
    about["allocators"] = sorted(found) or "neither jemalloc nor tcmalloc is here"
    growing = GrowingRun.begin(about, "headline", list(HEADLINES))
    names = growing.left(chosen.only)
    told = "" if chosen.smoke else f", about {expected_minutes(names, processes, found):.0f} minutes on two quiet cores"
    print(f"{len(names)} cases, {processes} processes each{told}; other allocators: {about['allocators']}", flush=True)
    run = growing.run
    run.peaks = run.peaks or peaks(CPU, (FP32, torch.bfloat16), small=chosen.smoke)
    for name in names:
        case = over_processes(name, mode, processes, found)
        print("\n".join(terminal.case_lines(case, run.peaks)), flush=True)
        if not chosen.smoke:
            growing.keep(case)
    print("nothing is written" if chosen.smoke else f"results: {growing.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
