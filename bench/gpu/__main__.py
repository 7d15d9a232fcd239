"""Everything that a machine with a GPU should run, part by part, each with a limit of its time.

    python -m bench.gpu FOLDER [--small]       or bench/gpu.sh

FOLDER has a file for each part: a line of JSON for each of its cases, added as the case ends, or what pytest said. What
outlasts its limit is interrupted as by Ctrl-C, so that it can say how far it was. --small is the rehearsal of it, which
needs no GPU: small sizes, Triton in its interpreter.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from bench.gpu import saved
from bench.harness.machine import ROOT

GRACE = 12.0
"""Seconds for what was interrupted to end by itself."""
PATIENCE = 10
"""Times as long as its limit a part may take in a rehearsal, which shows that it runs and not how fast."""
PROCESSES = 12
"""At a time: compiling takes most of it."""
NOT_OF_THE_DEVICE = (
    "name", "import", "ddp", "upcycle", "upcycle_masks", "validation", "huggingface", "huggingface_families",
    "huggingface_nomic",
)  # fmt: skip
"""Files of tests/kernels that machines without a GPU may answer for."""


class Part(NamedTuple):
    name: str
    seconds: float
    commands: dict[str, list[str]]
    """Name of its output -> what is run, all at once."""


def parts(folder: Path, small: bool) -> list[Part]:
    """The kernels' own tests first, then what needs them to be right."""
    made = [
        Part("tests", 180, tests(small)),
        Part("primitives", 100, shared("primitives", folder, 2 if small else 8, small)),
    ]
    if sanitizer := shutil.which("compute-sanitizer"):
        command = [sanitizer, "--error-exitcode", "9", *module("primitives", folder / "sanitizer.jsonl", True)]
        made.append(Part("sanitizer", 50, {"sanitizer": [*command, "--only", "fp32"]}))
    made.append(Part("application", 95, {"application": module("application", folder / "application.jsonl", small)}))
    made.append(Part("peers", 100, {"peers": module("peers", folder / "peers.jsonl", small)}))
    return [part._replace(seconds=PATIENCE * part.seconds) for part in made] if small else made


def module(name: str, output: Path, small: bool) -> list[str]:
    return [sys.executable, "-m", f"bench.gpu.{name}", str(output), *["--small"] * small]


def shared(name: str, folder: Path, processes: int, small: bool) -> dict[str, list[str]]:
    command = module(name, folder / f"{name}.jsonl", small)
    return {f"{name}-{own}": [*command, "--share", f"{own}/{processes}"] for own in range(processes)}


def tests(small: bool) -> dict[str, list[str]]:
    chosen = ["tests/kernels/test_sums.py"] if small else ["tests/kernels"]
    chosen += [] if small else [f"--ignore=tests/kernels/test_{name}.py" for name in NOT_OF_THE_DEVICE]
    command = [sys.executable, "-m", "pytest", *chosen, "-m", "not slow"]
    command += ["-p", "no:cacheprovider", "-p", "bench.gpu.share"]
    processes = 2 if small else PROCESSES
    return {f"tests-{own}": ["env", f"SHARE={own}/{processes}", *command] for own in range(processes)}


def run(part: Part, folder: Path, small: bool) -> dict[str, str]:
    """-> of each command, how it ended."""
    environment = os.environ | {"TRITON_INTERPRET": "1"} if small else os.environ
    started = {}
    for name, command in part.commands.items():
        with (folder / f"{name}.log").open("wb") as log:
            started[name] = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True,
                preexec_fn=heed_interrupts,
            )  # fmt: skip
    deadline, ends = time.monotonic() + part.seconds, {}
    try:
        for name, process in started.items():
            ends[name] = end_of(process, deadline)
    finally:
        for process in started.values():
            stop(process, signal.SIGKILL)
            process.wait()
    return ends


def heed_interrupts() -> None:
    """What a shell starts in the background ignores them, and so would what is started here."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end_of(process: subprocess.Popen, deadline: float) -> str:
    try:
        status = process.wait(max(0.0, deadline - time.monotonic()))
        return "ended" if status == 0 else f"failed with exit status {status}"
    except subprocess.TimeoutExpired:
        stop(process, signal.SIGINT)
    try:
        process.wait(GRACE)
        return "cut by its limit"
    except subprocess.TimeoutExpired:
        return "cut by its limit, and had to be killed"


def stop(process: subprocess.Popen, by: signal.Signals) -> None:
    """With what it has started."""
    try:
        os.killpg(process.pid, by)
    except ProcessLookupError:
        return


def last_words(folder: Path, name: str) -> str:
    lines = (folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip()), "nothing")


def summary(folder: Path, part: Part) -> str:
    """How many of its cases held, where it has cases."""
    found = [
        case["outcome"]
        for name in {Path(name).name.partition("-")[0] for name in part.commands}
        for case in saved.read(folder / f"{name}.jsonl")
    ]
    return ", ".join(f"{found.count(outcome)} {outcome}" for outcome in dict.fromkeys(found))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("folder", type=Path)
    options.add_argument("--small", action="store_true", help="a rehearsal, which needs no GPU")
    chosen = options.parse_args()
    folder = chosen.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    small = chosen.small or not torch.cuda.is_available()
    if small:
        print("a rehearsal: small sizes, and no GPU is needed", flush=True)
    bad = []
    for part in parts(folder, small):
        start = time.monotonic()
        ends = run(part, folder, small)
        print(f"== {part.name}: {time.monotonic() - start:.0f} s; {summary(folder, part)}", flush=True)
        for name, end in ends.items():
            print(f"   {name} {end}: {last_words(folder, name)}", flush=True)
            if end != "ended":
                bad.append(name)
    print(f"results: {folder}" + (f"; not as they should be: {', '.join(bad)}" if bad else ""))
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
