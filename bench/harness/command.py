"""A table of targets as a command: its cases, one after another, on the native backend of the CPU."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import torch

import kernels
from bench.contenders.our_layer import native_level
from bench.harness.machine import describe
from bench.harness.record import Run, result_path
from bench.harness.suite import Suite
from bench.reports import terminal

Cases = Callable[[Suite], Mapping[str, Callable[[str], None]]]
"""The name of each case, and what measures it under that name."""


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seconds", type=float, default=6.0, help="a case (default: %(default)s)")
    made.add_argument("--only", default="", help="only cases whose name contains this; nothing is written then")
    made.add_argument("--smoke", action="store_true", help="each case once, small; nothing is written")
    return made


def run(part: str, cases: Cases, chosen: argparse.Namespace, **about: Any) -> None:
    """Writes the result file `part` of this machine."""
    suite = Suite("smoke" if chosen.smoke else "full", torch.device("cpu"), seconds=chosen.seconds)
    if not suite.smoke:
        suite.on_case = lambda case: print("\n".join(terminal.case_lines(case, suite.peaks)), flush=True)
    with kernels.use_backend("native"):
        for name, measure in cases(suite).items():
            if chosen.only in name:
                measure(name)
        if suite.smoke or chosen.only:
            return
        about = {"mode": "full", "partial": False, "skipped": {}, "level": native_level()} | about
        run = Run(describe(suite.device) | about, suite.peaks, suite.cases)
        path = result_path(str(run.run["device"]), part)
        run.save(path)
        print(f"results: {path}")
