"""The README's performance tables, from the result files of every machine.

python -m bench.table              rewrites what is between the markers of README.md
python -m bench.table FILE...      prints the tables of these files, those of their targets too
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench.harness.machine import ROOT
from bench.harness.record import Run, committed
from bench.headline import HEADLINES
from bench.reports.markdown import contenders, headlines, processes, targets

README = ROOT / "README.md"

SHOWN = frozenset(name for name, about in HEADLINES.items() if about.shown)
"""Of a run in one process, too."""


def _encoders(runs: Sequence[Run]) -> str:
    """A whole encoder beside other runtimes, where that was measured in several processes."""
    return contenders([run for run in runs if processes(run)], "encoder")


TABLES: dict[str, Callable[[Sequence[Run]], str]] = {"bench": partial(headlines, also=SHOWN), "encoder": _encoders}
"""Name of a pair of markers -> what stands between them."""


def markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def between(text: str, name: str) -> str | None:
    """What stands between the markers of a page, or None if it has none."""
    begin, end = markers(name)
    if begin not in text or end not in text:
        return None
    return text.partition(begin)[2].partition(end)[0].strip("\n")


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
    for name, made in TABLES.items():
        begin, end = markers(name)
        if between(page, name) is None:
            print(f"bench.table: README.md must have {begin} and {end}", file=sys.stderr)
            return 2
        head, _, rest = page.partition(begin)
        page = f"{head}{begin}\n{made(runs)}\n{end}{rest.partition(end)[2]}"
    README.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
