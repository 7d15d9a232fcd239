"""The README's performance table, from the result files.

python -m bench.table              rewrites what is between the two markers of README.md
python -m bench.table FILE...      prints the table of these files
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.machine import ROOT, short
from bench.record import BASELINE, LIMIT, Case, Run, committed
from bench.report import amount, ratio

README = ROOT / "README.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def render(runs: list[Run]) -> str:
    """Markdown: one table a device, the headline cases of its run."""
    return "\n".join(line for run in runs for line in _table(run))


def _table(run: Run) -> Iterator[str]:
    versions = run.run["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers") if name in versions)
    yield f"**{run.run['device']}** ({packages}, {run.run['time'][:10]}, revision {short(run.run['revision'])})"
    yield ""
    yield "| case | ours | best peer | against it | against the loop | against dense |"
    yield "|---|---|---|---|---|---|"
    for case in run.cases:
        if case.headline and case.ours in case.samples:
            yield "| " + " | ".join(_row(case)) + " |"
    yield ""


def _row(case: Case) -> Iterator[str]:
    yield case.name
    yield amount(case.timings.median(case.ours), case.unit)
    best = case.best_peer
    yield "" if best is None else f"{best}, {amount(case.timings.median(best), case.unit)}"
    for peer in (best, BASELINE, LIMIT):
        yield ratio(case, peer) if peer in case.samples else ""


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
        table = render([Run.load(path) for path in files or committed()])
    except (OSError, ValueError) as error:
        print(f"bench.table: {error}", file=sys.stderr)
        return 2
    if files:
        print(table)
        return 0
    page = README.read_text(encoding="utf-8")
    if between_markers(page) is None:
        print(f"bench.table: README.md must have {BEGIN} and {END}", file=sys.stderr)
        return 2
    head, _, tail = page.partition(BEGIN)
    README.write_text(f"{head}{BEGIN}\n{table}\n{END}{tail.partition(END)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
