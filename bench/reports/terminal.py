"""A run in words, for the terminal. Ratios say how many times as fast, or as small, ours is: above 1 is good."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from bench.harness.machine import short
from bench.harness.record import Case, Run
from bench.harness.target import Verdict

SIZES = {"s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")), "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))}


def amount(value: float, unit: str) -> str:
    """
    >>> amount(0.0123, "s"), amount(1.5e-6, "s"), amount(56_852_516, "bytes")
    ('12.3 ms', '1.50 µs', '56.9 MB')
    """
    if unit not in SIZES:
        return f"{value:.4f} {unit}"
    scale, name = next((size for size in SIZES[unit] if value >= size[0]), SIZES[unit][-1])
    return f"{_three_digits(value / scale)} {name}"


def _three_digits(number: float) -> str:
    return f"{number:.{0 if number >= 99.95 else 1 if number >= 9.995 else 2}f}"


def ratio(case: Case, peer: str) -> str:
    """What is claimed against a peer: "1.31x (1.25 to 1.36)" over processes; of one process "1.31x", or "noisy"."""
    middle = _three_digits(case.timings.ratio(case.ours, peer))
    if found := case.range(case.ours, peer):
        low, high = map(_three_digits, found)
        return f"{middle}x" if low == high else f"{middle}x ({low} to {high})"
    return "noisy" if case.timings.verdict(case.ours, peer) == "noisy" else f"{middle}x"


def throughput(case: Case, name: str) -> str:
    """What a contender gets through in a second, where a case counts it: "182k tokens", "34.0 pairs"."""
    counted = next((what for what in ("pairs", "documents", "tokens") if what in case.settings), None)
    if case.unit != "s" or counted is None:
        return ""
    rate = case.settings[counted] / case.timings.median(name)
    scale, sign = next(size for size in ((1e6, "M"), (1e3, "k"), (0.0, "")) if rate >= size[0])
    return f"{_three_digits(rate / (scale or 1.0))}{sign} {counted}"


def lines(run: Run) -> Iterator[str]:
    about = run.run
    yield f"{about['device']} · {about['mode']} · threads {about['threads']} · revision {short(about['revision'])}"
    yield "measured limits: " + ", ".join(f"{name} {rate / 1e9:.0f} G/s" for name, rate in run.peaks.items())
    for group in dict.fromkeys(case.group for case in run.cases):
        yield ""
        yield group
        for case in run.cases:
            if case.group == group:
                yield from case_lines(case, run.peaks)
    reasons = Counter(f"{name}: {reason}" for case in run.cases for name, reason in case.skipped.items())
    reasons |= Counter({f"{case}: {reason}": 1 for case, reason in about["skipped"].items()})
    if reasons:
        yield ""
        yield "not measured"
        yield from (f"  {reason}" + (f" ({count} cases)" if count > 1 else "") for reason, count in reasons.items())


def case_lines(case: Case, peaks: dict[str, float]) -> Iterator[str]:
    yield f"  {case.name}"
    if case.fit:
        powers = ", ".join(f"{power:.2f} ({name})" for name, power in case.fit.items())
        yield f"      cost grows with the power {powers}"
    competing = case.ours in case.samples
    if competing:
        share = peak_share(case, case.ours, peaks)
        limit = "" if share is None else f", {share:.0%} of the measured limit"
        rate = throughput(case, case.ours)
        yield f"      {case.ours} {_value(case, case.ours)}{limit}" + (f", {rate} a second" if rate else "")
    for name in case.samples:
        if not competing:
            yield f"      {name} {_value(case, name)}"
        elif name != case.ours:
            verdict = case.timings.verdict(case.ours, name)
            told = case.unit == "s" and verdict != "noisy" and not case.processes
            against = ratio(case, name) + (f" {verdict}" if told else "")
            yield f"      against {name}: {against} ({_value(case, name)})"
    for name, way in case.chosen.items():
        yield f"      {name} at its best: {way}"
    for verdict in case.verdicts:
        yield f"      {verdict.verdict}: {verdict.target}: {', '.join(measured(verdict))}"
    for name, figures in case.figures.items():
        yield from _figures(name, figures)


def measured(verdict: Verdict) -> Iterator[str]:
    """What was measured for a target: the figure, that of the fastest calls, its spread."""
    yield f"{verdict.figure:.5g}" + (f" ({verdict.peer})" if verdict.peer != verdict.target.peer else "")
    if verdict.fastest is not None:
        yield f"{verdict.fastest:.5g} of the fastest calls"
    if verdict.spread is not None:
        yield f"spread {verdict.spread:.1%}"


def _figures(name: str, figures: Any) -> Iterator[str]:
    if name == "profile":
        for row in figures["stages"]:
            yield f"      {row['ms']:10.2f} ms {row['share']:7.1%}  {row['stage']}"
    elif isinstance(figures, dict):
        yield f"      {name}: " + ", ".join(f"{value:.5g} ({key})" for key, value in figures.items())
    else:
        yield f"      {name}: {figures:.5g}"


def _value(case: Case, name: str) -> str:
    """The median and half of the distance between the quartiles; percentiles of a latency."""
    if case.settings.get("latency") and not case.processes:
        return ", ".join(f"p{p} {amount(case.timings.quantile(name, p / 100), case.unit)}" for p in (50, 95, 99))
    spread = f" ±{case.timings.spread(name) / 2:.0%}" if len(case.samples[name]) > 1 else ""
    return amount(case.timings.median(name), case.unit) + spread


def peak_share(case: Case, name: str, peaks: dict[str, float]) -> float | None:
    """Of the roofline: the least time that the work could take, over the time that it took."""
    if case.unit != "s" or not case.work:
        return None
    least = [case.work["bytes"] / peaks["copy"]] if "bytes" in case.work else []
    if "flops" in case.work:
        least.append(case.work["flops"] / peaks[str(case.work["peak"])])
    return max(least) / case.timings.minimum(name)
