"""Contenders timed against each other, interleaved in one process: A B C A B C, so that whatever else the machine does
meanwhile happens to all of them.

    timings = interleave({"kernels": lambda: ours(x), "loop": lambda: loop(x)}, seconds=2.0)
    timings.median("kernels"), timings.ratio("kernels", "loop"), timings.verdict("kernels", "loop")

>>> timings = Timings({"kernels": [1.0, 1.1, 1.0], "loop": [2.0, 2.2, 2.1]})
>>> round(timings.ratio("kernels", "loop"), 2), timings.verdict("kernels", "loop")
(2.0, 'faster')
"""

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import torch

WARM_UPS = 2
LONG = 0.5
"""Seconds: a call that takes longer is warm after the first."""
LONGEST_TIE = 0.05
"""Two contenders whose spread is below this and above their difference are equal, not noisy."""


class Timings(NamedTuple):
    """Seconds a call of each contender, round by round; the entries of one round were measured side by side."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return quantile(self.seconds[name], 0.5)

    def quantile(self, name: str, q: float) -> float:
        return quantile(self.seconds[name], q)

    def minimum(self, name: str) -> float:
        return min(self.seconds[name])

    def spread(self, name: str) -> float:
        """Between the quartiles, as a share of the median."""
        return (quantile(self.seconds[name], 0.75) - quantile(self.seconds[name], 0.25)) / self.median(name)

    def ratio(self, ours: str, peer: str) -> float:
        """How many times as fast ours is: the median over the rounds of peer's time / ours."""
        return quantile(self.ratios(ours, peer), 0.5)

    def ratio_spread(self, ours: str, peer: str) -> float:
        """Between the quartiles of the rounds' ratios, in logarithms: 0.1 is about 10%."""
        ratios = self.ratios(ours, peer)
        return math.log(quantile(ratios, 0.75) / quantile(ratios, 0.25))

    def verdict(self, ours: str, peer: str) -> str:
        """faster, slower, even, or noisy: the ratio's spread is wider than the claim that it makes."""
        claim, spread = math.log(self.ratio(ours, peer)), self.ratio_spread(ours, peer)
        if abs(claim) <= spread:
            return "even" if spread < LONGEST_TIE else "noisy"
        return "faster" if claim > 0 else "slower"

    def ratios(self, ours: str, peer: str) -> list[float]:
        """Peer's time / ours of each round."""
        return [theirs / mine for mine, theirs in zip(self.seconds[ours], self.seconds[peer])]


def quantile(values: list[float], q: float) -> float:
    return float(np.quantile(values, q))


def exponent(costs: Mapping[float, float]) -> float:
    """The power with which a cost grows with size, by least squares: 1 is proportional, 0 does not grow.

    >>> round(exponent({100: 1.0, 200: 2.0, 400: 4.0}), 3)
    1.0
    """
    if len(costs) < 2:
        raise ValueError(f"costs must have at least 2 sizes, got {sorted(costs)}")
    points = [(math.log(size), math.log(cost)) for size, cost in costs.items()]
    mean_x, mean_y = (sum(axis) / len(points) for axis in zip(*points))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def one_at_a_time(call: Callable[[list[Any]], object], asked: Sequence[Any]) -> Callable[[], object]:
    """What a latency is measured of: the next of `asked` alone, over and over."""
    upcoming = cycle(asked)
    return lambda: call([next(upcoming)])


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 2.0,
    min_rounds: int = 7,
    max_rounds: int = 200,
    min_sample: float = 1e-3,
    warm_ups: int = WARM_UPS,
    device: str | torch.device = "cpu",
) -> Timings:
    """Times every contender once a round, for about `seconds` in all but at least `min_rounds` rounds.

    A sample of a contender that takes less than `min_sample` is the mean of several calls in a row: 0 makes every
    sample one call, which is what a latency's percentiles need. So does `warm_ups` of 0, for calls that have run.
    """
    clock = cuda_clock if torch.device(device).type == "cuda" else cpu_clock
    calls = {}
    for name, call in contenders.items():
        duration = math.inf
        for _ in range(warm_ups):
            duration = clock(call, 1)
            if min_sample and duration > LONG:
                break
        calls[name] = max(1, math.ceil(min_sample / max(duration, 1e-7)))
    rounds: dict[str, list[float]] = {name: [] for name in contenders}
    collecting = gc.isenabled()
    gc.disable()
    try:
        deadline = time.perf_counter() + seconds
        for done in range(max_rounds):
            if done >= min_rounds and time.perf_counter() >= deadline:
                break
            for name, call in contenders.items():
                rounds[name].append(clock(call, calls[name]))
    finally:
        if collecting:
            gc.enable()
    return Timings(rounds)


def cpu_clock(call: Callable[[], object], calls: int) -> float:
    """-> seconds a call"""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def cuda_clock(call: Callable[[], object], calls: int) -> float:
    """-> seconds a call, by the device's own clock: its launches are queued while it works, as in a real model"""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3 / calls
