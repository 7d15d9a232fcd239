"""Makes small wrong changes in a copy of the kernels, one at a time, and sees whether the suite notices.

    python -m tests.kernels.mutations [--area native] [--out table.md]

Prints a row for each (what was changed, which test failed, in how long) and fails if one survives.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.kernels.mutations.changes import AREAS, TESTS, Change

ROOT = Path(__file__).parents[3]


def copy_of_the_checkout(folder: Path) -> Path:
    for name in ("kernels", "moe_retrieval", "bench", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", ".build-*"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def run_tests(folder: Path, area: str) -> str | None:
    """-> the first test that fails, None where all pass"""
    environment = os.environ | {"PYTHONPATH": str(folder), "MOE_KERNELS_CACHE": str(folder / "cache")}
    environment["MOE_KERNELS_CXXFLAGS"] = "-O1"  # compiling is most of the time
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *TESTS[area]]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", result.stdout, re.MULTILINE)
    if result.returncode < 0 and not failed:  # what writes out of bounds may end the process, which shows where it was
        failed = re.search(r'File "\S*?/((?:tests|kernels)/\S+\.py)", line \d+ in test_', result.stderr)
    if result.returncode and not failed:
        raise SystemExit(f"the tests of {area} do not run:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    return failed[1] if failed else None


def show(folder: Path, area: str, change: Change) -> tuple[str | None, float]:
    """-> the test that notices, and the seconds until then"""
    path = folder / "kernels" / change.file
    before = path.read_text()
    assert before.count(change.old) == 1, f"{change.file} has {change.old!r} {before.count(change.old)} times"
    start = time.monotonic()
    path.write_text(before.replace(change.old, change.new))
    try:
        return run_tests(folder, area), time.monotonic() - start
    finally:
        path.write_text(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--area", choices=AREAS, help="one area (default: all)")
    parser.add_argument("--out", type=Path, help="also write the table here")
    chosen = parser.parse_args()
    rows = ["| area | file | what the change means | noticed by | seconds |", "|---|---|---|---|---|"]
    print(*rows, sep="\n")
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_of_the_checkout(Path(folder))
        for area in [chosen.area] if chosen.area else AREAS:
            if failed := run_tests(copy, area):
                raise SystemExit(f"without any change, {failed} fails")
            for change in AREAS[area]:
                failed, seconds = show(copy, area, change)
                survivors += failed is None
                told = "**nothing**" if failed is None else f"`{failed.removeprefix('tests/kernels/').split('[')[0]}`"
                rows.append(f"| {area} | {change.file} | {change.idea} | {told} | {seconds:.0f} |")
                print(rows[-1], flush=True)
    rows += ["", f"{len(rows) - 2 - survivors} of {len(rows) - 2} are noticed."]
    print(rows[-1])
    if chosen.out:
        chosen.out.write_text("\n".join(rows) + "\n")
    raise SystemExit(survivors > 0)


if __name__ == "__main__":
    main()
