"""A table of targets as a command: its cases, one after another, on the native backend of the CPU."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

import kernels
from bench.contenders.our_layer import native_level
from bench.harness import fresh
from bench.harness.machine import describe
from bench.harness.peaks import peaks
from bench.harness.record import Case, Run, case_of, result_path
from bench.harness.suite import Suite
from bench.harness.target import judge
from bench.harness.turns import GrowingRun, over_turns
from bench.reports import terminal

CPU = torch.device("cpu")

Cases = Callable[[Suite], Mapping[str, Callable[[str], None]]]
"""The name of each case, and what measures it under that name."""


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--processes", type=int, default=5, help="a case, one after another (default: %(default)s)")
    made.add_argument("--seconds", type=float, default=2.0, help="a case and process (default: %(default)s)")
    made.add_argument("--only", default="", help="only cases whose names contain this, again if they are there")
    made.add_argument("--smoke", action="store_true", help="each case once, small; nothing is written")
    return made


def checked(made: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    chosen = made.parse_args(arguments)
    if chosen.processes < 1:
        made.error(f"--processes must be at least 1, got {chosen.processes}")
    return chosen


def main(part: str, cases: str, description: str | None, arguments: Sequence[str] | None) -> None:
    """Of a table that has no flags of its own."""
    run(part, cases, checked(parser(description), arguments))


def run(part: str, cases: str, chosen: argparse.Namespace, **about: Any) -> None:
    """Each case of `cases`, "module:function", in fresh processes; writes the result file `part` of this machine after
    each. A run that was stopped goes on."""
    if chosen.smoke:
        smoke(fresh.named(cases), chosen.only)
        return
    with kernels.use_backend("native"):
        about = describe(CPU) | {"mode": "full", "skipped": {}, "level": native_level()} | about
        names = list(fresh.named(cases)(Suite("headline", CPU)))
    if not any(chosen.only in name for name in names):
        raise SystemExit(f"error: --only {chosen.only!r} is in the name of none of: {', '.join(names)}")
    growing = GrowingRun.begin(about | {"processes": chosen.processes}, part, names)
    growing.run.peaks = growing.run.peaks or peaks(CPU, (torch.float32, torch.bfloat16))
    for name in growing.left(chosen.only):
        case = over_processes(cases, name, chosen)
        print("\n".join(terminal.case_lines(case, growing.run.peaks)), flush=True)
        growing.keep(case)
    print(f"results: {growing.path}")


def over_processes(cases: str, name: str, chosen: argparse.Namespace) -> Case:
    targets = []

    def measured(turn: int, allocator: str, known: Mapping[str, str]) -> Case:
        settings = {"seconds": chosen.seconds, "turn": turn, "chosen": known}
        case = case_of(fresh.call("bench.harness.command:measure", cases, name, json.dumps(settings)))
        targets[:] = [verdict.target for verdict in case.verdicts]
        return case

    case = over_turns(measured, chosen.processes)
    judge(case, targets)
    return case


def measure(cases: str, name: str, settings: str) -> dict[str, Any]:
    """-> the case as JSON has it; called in a fresh process"""
    suite = Suite("headline", CPU, **json.loads(settings))
    with kernels.use_backend("native"):
        fresh.named(cases)(suite)[name](name)
    (case,) = suite.cases
    return asdict(case)


def smoke(cases: Cases, only: str) -> None:
    suite = Suite("smoke", CPU)
    with kernels.use_backend("native"):
        for name, measured in cases(suite).items():
            if only in name:
                measured(name)


def run_once(part: str, cases: Cases, chosen: argparse.Namespace, **about: Any) -> None:
    """What needs no second process: a count, a quality, or the peak of a process that the case starts itself."""
    if chosen.smoke:
        smoke(cases, chosen.only)
        return
    suite = Suite("full", CPU, seconds=chosen.seconds)
    suite.on_case = lambda case: print("\n".join(terminal.case_lines(case, suite.peaks)), flush=True)
    with kernels.use_backend("native"):
        for name, measured in cases(suite).items():
            if chosen.only in name:
                measured(name)
        if chosen.only:
            return
        about = {"mode": "full", "partial": False, "skipped": {}, "level": native_level()} | about
        whole = Run(describe(suite.device) | about, suite.peaks, suite.cases)
        path = result_path(str(whole.run["device"]), part)
        whole.save(path)
        print(f"results: {path}")
