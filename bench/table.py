"""The README's performance tables, from the result files of every machine.

python -m bench.table              rewrites what is between the two markers of README.md
python -m bench.table FILE...      prints the tables of these files, those of their targets too
"""

import argparse
import sys
from pathlib import Path

from bench.harness.machine import ROOT
from bench.harness.record import Run, committed
from bench.headline import HEADLINES
from bench.reports.markdown import headlines, targets

README = ROOT / "README.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


SHOWN = frozenset(name for name, about in HEADLINES.items() if about.shown)
"""Of a run in one process, too."""


def between_markers(text: str) -> str | None:
    """What stands between the markers of a page, or None if it has none."""
    if BEGIN not in text or END not in text:
        return None
    return text.partition(BEGIN)[2].partition(END)[0].strip("\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="result files (default: those of bench/results)")
    files = parser.parse_args(arguments).files
    try:
        runs = [Run.load(path) for path in files or committed()]
    except (OSError, ValueError) as error:
        print(f"bench.table: {error}", file=sys.stderr)
        return 2
    if files:
        print("\n".join(filter(None, (headlines(runs, SHOWN), targets(runs)))))
        return 0
    page = README.read_text(encoding="utf-8")
    if between_markers(page) is None:
        print(f"bench.table: README.md must have {BEGIN} and {END}", file=sys.stderr)
        return 2
    head, _, tail = page.partition(BEGIN)
    README.write_text(f"{head}{BEGIN}\n{headlines(runs, SHOWN)}\n{END}{tail.partition(END)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
