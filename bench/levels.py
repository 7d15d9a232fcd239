"""What each instruction set does on this CPU: GFLOP/s of the microkernel on one core, by level and type, hot and cold.

    python -m bench.levels [--rounds N] [--smoke]

writes bench/results/MACHINE-levels.json, for the table in kernels/cpu/levels.py. Weights are
hot, in the second-level cache, or cold, each from memory once for a tile of tokens. Levels take turns, each time in a
process of its own.
"""

import argparse
import shlex
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.harness.machine import describe
from bench.harness.record import Case, Run, result_path
from kernels.cpu import build
from kernels.cpu.levels import LEVELS, Machine, best, runnable

TYPES = ("bf16", "fp32")
PLACES = ("hot", "cold")
SECONDS = 0.3
"""About what a round of one level takes."""


def compiled(level: str, folder: Path) -> Path:
    """The program that measures this level."""
    target = folder / level
    sources = [Path(__file__).with_name("microkernel.cpp")]
    sources += [build.HERE / "runtime" / f"{name}.cpp" for name in ("arena", "poison", "pool")]
    flags = f"{build.LEVEL_FLAGS} {LEVELS[level].compiler} -std=c++20 -fexceptions -pthread"
    command = [*shlex.split(build.compiler()), *flags.split(), "-I", build.HERE, *sources, "-o", target]
    subprocess.run(command, check=True)
    return target


def seconds(program: Path, dtype: str, place: str, passes: int) -> tuple[float, float]:
    """-> FLOPs, seconds"""
    result = subprocess.run([program, dtype, place, str(passes)], capture_output=True, text=True, check=True)
    flops, taken, _ = result.stdout.split()
    return float(flops), float(taken)


def measure(programs: dict[str, Path], dtype: str, place: str, rounds: int, smoke: bool) -> Case:
    """Samples are seconds a GFLOP: a level's tile, and so its pass, is as large as its registers allow."""
    samples: dict[str, list[float]] = {level: [] for level in programs}
    passes = {}
    for level, program in programs.items():
        passes[level] = 1 if smoke else max(1, round(SECONDS / seconds(program, dtype, place, 1)[1]))
    for _ in range(rounds):
        for level, program in programs.items():
            flops, taken = seconds(program, dtype, place, passes[level])
            samples[level].append(taken / flops * 1e9)
    rates = {level: 1 / statistics.median(taken) for level, taken in samples.items()}
    return Case("levels", f"{dtype} {place}", samples, ours="", work={"flops": 1e9}, figures={"gflops": rates})


def table(cases: Sequence[Case]) -> str:
    rows = ["  ".join(["GFLOP/s, one core".ljust(17), *(case.name.rjust(9) for case in cases)])]
    for level in cases[0].samples:
        rates = (case.figures["gflops"][level] for case in cases)
        rows.append("  ".join([level.ljust(17), *(f"{rate:9.0f}" for rate in rates)]))
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="of each level (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="each once, small; nothing is written")
    chosen = parser.parse_args(arguments)
    machine = Machine.read()
    levels = [level for level in runnable(machine) if level in LEVELS]
    with tempfile.TemporaryDirectory() as folder:
        programs = {level: compiled(level, Path(folder)) for level in levels}
        rounds = 1 if chosen.smoke else chosen.rounds
        cases = [measure(programs, dtype, place, rounds, chosen.smoke) for dtype in TYPES for place in PLACES]
    print(table(cases))
    print(f"the table of kernels/cpu/levels.py picks {best(machine, levels)}")
    if chosen.smoke:
        return
    about = describe(torch.device("cpu")) | {"mode": "full", "partial": False, "skipped": {}, "threads": 1}
    path = result_path(str(about["device"]), "levels")
    Run(about, {}, cases).save(path)
    print(f"results: {path}")


if __name__ == "__main__":
    main()
