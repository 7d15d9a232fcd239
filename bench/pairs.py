"""This checkout against another one of the same project: fresh processes in turns, public names alone.

    git worktree add ../before REVISION && python -m bench.pairs ../before          [--rounds 5] [--only query]

Each round starts one process a checkout and case, the two side by side in time; a row is the median over the rounds of
new / old, with its range. Below 1 the new one is faster. Writes a table to bench/results, named after the machine.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from bench.cases import pairs
from bench.harness import fresh
from bench.harness.machine import ROOT, device_model, revision, short, slug
from bench.harness.record import RESULTS


def measure(checkout: Path, case: str) -> float:
    """In a fresh process of that checkout, by its own environment if it has one."""
    own = checkout / ".venv" / "bin" / "python"
    command = [str(own if own.exists() else sys.executable), pairs.__file__, case]
    return float(fresh.last_line(command, checkout, PYTHONPATH=str(checkout), PYTHONSAFEPATH="1"))


def git_revision(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def row(name: str, times: list[tuple[float, float]]) -> str:
    ratios = [new / old for old, new in times]
    old, new = (statistics.median(side) * 1e3 for side in zip(*times))
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    return f"| {name} | {old:.3g} | {new:.3g} | {statistics.median(ratios):.3f} | {spread} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="a checkout of the revision to compare with")
    parser.add_argument("--rounds", type=int, default=5, help="processes a case and checkout (default: 5)")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    chosen = parser.parse_args()
    if not (chosen.old / "kernels").is_dir():
        parser.error(f"{chosen.old} is no checkout of this project")
    device = device_model(torch.device("cpu"))
    lines = [
        f"**{device}**, torch {torch.__version__}: {short(revision())} against {short(git_revision(chosen.old))}, "
        f"{chosen.rounds} processes a case and side",
        "",
        "| case | before, ms | now, ms | now / before | range |",
        "|---|---|---|---|---|",
    ]
    for name in pairs.CASES:
        if chosen.only in name:
            times = []
            for turn in range(chosen.rounds):
                order = (chosen.old.resolve(), ROOT) if turn % 2 == 0 else (ROOT, chosen.old.resolve())
                measured = {checkout: measure(checkout, name) for checkout in order}
                times.append((measured[chosen.old.resolve()], measured[ROOT]))
            lines.append(row(name, times))
            print(lines[-1], flush=True)
    if not chosen.only:
        path = RESULTS / f"{slug(device)}-pairs.md"
        path.write_text("\n".join(lines) + "\n")
        print(f"written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
