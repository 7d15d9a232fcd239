"""What quality the variants reach on the embedded default, `docs`: trained alike, with the controls.

    python -m bench.evidence [flags of moe_retrieval.compare]

Writes bench/results/evidence.md: the tables, and where and when they were measured; beside it what they link to,
comparison.json and the curve of a sweep. A comparison that was stopped goes on, of the same revision alone: each has a
folder of its own below --output-dir.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.harness.machine import describe, revision, short
from bench.harness.record import RESULTS
from moe_retrieval.cli import parse, run_command
from moe_retrieval.compare import PRESETS, CompareConfig, compare
from moe_retrieval.errors import InputError

FILE = RESULTS / "evidence.md"


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
    config = parse(CompareConfig, arguments, "python -m bench.evidence", PRESETS)
    if config.dataset != "docs":
        raise InputError(f"--dataset must be docs, which every machine has; got {config.dataset!r}")
    measured = short(revision())
    if measured.endswith("-changed"):
        raise InputError("kernels, moe_retrieval or bench differ from their commit: commit them first")
    folder = Path(config.output_dir) / f"evidence-{measured}"
    config.output_dir = str(folder)
    compare(config)
    about = describe(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    versions = about["versions"]
    assert isinstance(versions, dict)
    told = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers"))
    origin = f"Measured on {about['device']}, {told}, {str(about['time'])[:10]}, revision {measured}."
    FILE.write_text(f"{(folder / 'README.md').read_text('utf-8')}\n{origin}\n", "utf-8")
    for name in ("comparison.json", "sweep.png", "sweep.svg"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, RESULTS / name)
    print(f"results: {FILE}")


if __name__ == "__main__":
    run_command(main)
