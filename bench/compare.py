"""Two runs on the same machine: what became slower, or larger, beyond noise.

    python -m bench.compare OLD.json NEW.json          exit status 1 if something did

A case that has peers is judged by its ratio to them: their code did not change, so what changed for them too is the
machine. Where the versions of the peers differ between the runs, or there is no peer, the plain times are compared.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.harness.record import Case, Run
from bench.harness.timing import quantile
from bench.reports.terminal import amount

LEAST = 0.05
"""A change below 5% is none, whatever the spread says."""


class Change(NamedTuple):
    """Of one case, from the old run to the new one."""

    case: str
    old: str
    new: str
    factor: float
    """How many times as slow, or as large, as it was; the machine's own change taken out where peers show it."""
    noise: float
    """What the factor could be by chance."""

    @property
    def verdict(self) -> str:
        if abs(math.log(self.factor)) <= max(math.log(self.noise), LEAST):
            return "same"
        return "REGRESSION" if self.factor > 1 else "better"


def changes(old: Run, new: Run) -> Iterator[Change]:
    """For every case that is in both."""
    peers_changed = old.run["versions"] != new.run["versions"]
    before = {(case.group, case.name): case for case in old.cases}
    for case in new.cases:
        was = before.get((case.group, case.name))
        if was is None or case.ours not in case.samples or was.ours not in was.samples:
            continue
        controls = [] if peers_changed or case.unit != "s" else [p for p in case.peers if p in was.samples]
        factor, noise = _change(was, case, controls)
        old_amount, new_amount = (amount(c.timings.median(c.ours), c.unit) for c in (was, case))
        yield Change(f"{case.group}: {case.name}", old_amount, new_amount, factor, noise)


def _change(was: Case, case: Case, controls: list[str]) -> tuple[float, float]:
    own = case.timings.median(case.ours) / was.timings.median(was.ours)
    if not controls:
        return own, math.exp(sum(_log_spread(c.samples[c.ours]) for c in (was, case)))
    relative = [was.timings.ratio(was.ours, peer) / case.timings.ratio(case.ours, peer) for peer in controls]
    spreads = [sum(c.timings.ratio_spread(c.ours, peer) for c in (was, case)) for peer in controls]
    return quantile(relative, 0.5), math.exp(quantile(spreads, 0.5))


def _log_spread(values: list[float]) -> float:
    return math.log(quantile(values, 0.75) / quantile(values, 0.25))


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
