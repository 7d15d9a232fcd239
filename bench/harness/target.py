"""What a case has to reach: a ratio, or nearness, to a named peer; and whether it did."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.harness.record import Case

BEST = "best peer"
"""As the peer of a target: the fastest of those that took part."""


@dataclass(frozen=True)
class Target:
    """One of `least`, `most` and `within` is required of `ours` against `peer`."""

    ours: str
    peer: str
    least: float | None = None
    """How many times as fast as the peer."""
    most: float | None = None
    """How many times the peer's cost."""
    within: float | None = None
    """How far from the peer, in the case's unit."""

    def __str__(self) -> str:
        if self.least is not None:
            return f"{self.ours}: at least {self.least:g} times as fast as {self.peer}"
        if self.most is not None:
            return f"{self.ours}: at most {self.most:g} times the cost of {self.peer}"
        return f"{self.ours}: within {self.within:g} of {self.peer}"

    def peers(self, case: "Case") -> list[str]:
        """Those that took part, or the ways of the one that is named."""
        ways = [name for name in case.samples if name == self.peer or name.startswith(f"{self.peer} ")]
        return case.peers if self.peer == BEST else ways

    def judge(self, case: "Case") -> "Verdict":
        timings, peers = case.timings, self.peers(case)
        peer = min(peers, key=timings.median)
        if self.within is not None:
            return self.verdict(peer, timings.median(self.ours) - timings.median(peer))
        figure, fastest = timings.ratio(self.ours, peer), min(map(timings.minimum, peers)) / timings.minimum(self.ours)
        if self.most is not None:
            figure, fastest = timings.ratio(peer, self.ours), 1 / fastest
        return self.verdict(peer, figure, fastest, case.spread(self.ours, peer))

    def verdict(self, peer: str, figure: float, fastest: float | None = None, spread: float | None = None) -> "Verdict":
        if self.within is not None:
            margin = math.inf if abs(figure) <= self.within else -math.inf
        else:
            margin = math.log(figure / self.least if self.least is not None else self.most / figure)
        verdict = "missed" if margin < 0 else "undecided" if margin < (spread or 0) else "met"
        return Verdict(self, peer, figure, fastest, spread, verdict)


def judge(case: "Case", targets: "Sequence[Target]") -> None:
    """Keeps the verdicts in the case, and what cannot be judged there under what it skipped."""
    for target in targets:
        if target.peers(case):
            case.verdicts.append(target.judge(case))
        else:
            case.skipped = case.skipped | {f"the target {target}": "the peer did not take part"}


@dataclass(frozen=True)
class Verdict:
    """Of a target, on one run."""

    target: Target
    peer: str
    """The contender that ours was held to."""
    figure: float
    """What the target bounds: the median of the ratio over the rounds, or the processes; or the difference."""
    fastest: float | None
    """The ratio of the fastest calls: what a machine that does other things meanwhile still shows."""
    spread: float | None
    """Of the ratio, as `Case.spread` has it; None where it is not known."""
    verdict: str
    """met, missed, or undecided: met by less than the spread. An unknown spread leaves nothing undecided."""
