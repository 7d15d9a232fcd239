"""What a case does, whatever it measures: run its contenders small, or time them and keep the numbers.

A case gets one `Suite` (a test of `bench/`: as its fixture `suite`), prepares contenders that have been proved right,
times them, or counts something else, and keeps the numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch

from bench.harness.peaks import peaks
from bench.harness.record import OURS, Case
from bench.harness.target import Target, judge
from bench.harness.timing import interleave

T = TypeVar("T")

SECONDS = {"smoke": 0.0, "quick": 0.5, "headline": 2.0, "full": 3.0}
"""How long a case times its contenders, all together, if that makes enough rounds."""

ROUNDS = {"quick": 5, "headline": 3, "full": 9}
"""The fewest rounds that a median is taken of, in one process."""


@dataclass
class Suite:
    mode: str
    """smoke: each case once, small; quick: the cases that matter most, half a second each; full: everything; headline:
    one of several fresh processes."""
    device: torch.device
    seconds: float | None = None
    """How long a case times its contenders, if not as long as `SECONDS` has it for the mode."""
    cases: list[Case] = field(default_factory=list)
    on_case: Callable[[Case], None] = lambda case: None
    """Called with each case that is kept."""
    turn: int = 0
    """By how many places the order of the contenders is turned: another number in each of several processes."""
    peers_only: bool = False
    """Whether ours stay away: the process is for peers, under an allocator that may suit them better."""
    chosen: Mapping[str, str] = field(default_factory=dict)
    """How each library was at its best, if an earlier process has found out."""
    partial: bool = False
    """Whether only some of the cases were selected."""
    deadline: float = float("inf")
    """On the monotonic clock; no case starts after it."""

    @property
    def smoke(self) -> bool:
        return self.mode == "smoke"

    @cached_property
    def peaks(self) -> dict[str, float]:
        """Measured when they are first asked for."""
        half = (torch.float16,) if self.device.type == "cuda" else ()
        return peaks(self.device, (torch.float32, torch.bfloat16, *half), small=self.smoke)

    def taking_part(self, contenders: Mapping[str, T]) -> dict[str, T]:
        """Those of this process, in its order."""
        names = [name for name in contenders if not (self.peers_only and name.startswith(OURS))]
        start = self.turn % max(1, len(names))
        return {name: contenders[name] for name in names[start:] + names[:start]}

    def time(
        self, contenders: Mapping[str, Callable[[], object]], *, latency: bool = False, **how: Any
    ) -> dict[str, list[float]]:
        """Seconds of each contender, round by round. `latency`: single calls, as many as a percentile needs. `how`:
        what a measured case tells `interleave` other than its mode does."""
        if self.smoke:
            how = dict(min_rounds=1, max_rounds=1, min_sample=0.0)
        elif latency:
            how = dict(min_rounds=20 * ROUNDS[self.mode], max_rounds=500, min_sample=0.0) | how
        else:
            how = dict(min_rounds=ROUNDS[self.mode]) | how
        seconds = SECONDS[self.mode] if self.seconds is None else self.seconds
        return interleave(self.taking_part(contenders), **{"seconds": seconds, "device": self.device} | how).seconds

    def keep(
        self, group: str, name: str, samples: dict[str, list[float]], targets: Sequence[Target] = (), **about: Any
    ) -> None:
        """The numbers of a case, and what `Case` is told about them."""
        case = Case(group, name, samples, **about)
        judge(case, targets)
        self.cases.append(case)
        self.on_case(case)
