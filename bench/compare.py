"""Two runs on the same machine: what became slower, or larger, beyond noise.

python -m bench.compare OLD.json NEW.json          exit status 1 if something did
"""

import argparse
import sys
from pathlib import Path

from bench.harness.record import Run
from bench.reports.comparison import changes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__.partition("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    paths = parser.parse_args(arguments)
    try:
        old, new = Run.load(paths.old), Run.load(paths.new)
    except (OSError, ValueError) as error:
        print(f"bench.compare: {error}", file=sys.stderr)
        return 2
    if old.run["device"] != new.run["device"]:
        devices = f"{old.run['device']!r} and {new.run['device']!r}"
        print(f"bench.compare: the runs must be of one device, got {devices}", file=sys.stderr)
        return 2
    found = list(changes(old, new))
    for change in sorted(found, key=lambda change: -change.factor):
        print(f"{change.verdict:11}{change.factor:6.2f}x  {change.old:>9} -> {change.new:<9}  {change.case}")
    names = [{(case.group, case.name) for case in run.cases} for run in (old, new)]
    for group, name in sorted(names[0] - names[1]):
        print(f"missing in the new run: {group}: {name}")
    worse = [change for change in found if change.verdict == "REGRESSION"]
    print(f"{len(found)} cases compared, {len(worse)} regressions")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
