"""Result files as Markdown tables: the headline cases of a machine, all contenders of a case, and what became of
targets."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial

from bench.harness.machine import short
from bench.harness.record import BASELINE, LIMIT, UNDER, Case, Run
from bench.reports.terminal import amount, measured, ratio, throughput

HEADLINES = "| case | ours | a second | best peer | against it | against the loop | against dense |"
CONTENDERS = "| case | contender | takes | a second | ours is |"
TARGETS = "| case | target | measured | verdict |"


def headlines(runs: Iterable[Run], also: Collection[str] = ()) -> str:
    """One table a machine: that of its headlines where there is one, else that of its run in one process, which shows
    cases of the names `also` too."""
    by_device: dict[str, Run] = {}
    for run in runs:
        shown = by_device.get(run.run["device"])
        if any(case.headline for case in run.cases) and (shown is None or not processes(shown)):
            by_device[run.run["device"]] = run
    return _tables(by_device.values(), HEADLINES, partial(_headline_rows, also=also))


def contenders(runs: Iterable[Run], group: str) -> str:
    """One table a run: in the cases of a group that have peers, each of those that took part, the fastest first."""
    return _tables(runs, CONTENDERS, partial(_contender_rows, group=group))


def targets(runs: Iterable[Run]) -> str:
    """One table a run; ratios say how many times as fast, or what part of the cost."""
    return _tables(runs, TARGETS, _target_rows)


def processes(run: Run) -> int:
    """How many a case has been measured in; 0 where all of them were in one."""
    return max((len(values) for case in run.cases if case.processes for values in case.samples.values()), default=0)


def _tables(runs: Iterable[Run], header: str, rows_of: Callable[[Case], Iterator[list[str]]]) -> str:
    lines = []
    for run in runs:
        cases = {case.name: list(rows_of(case)) for case in run.cases}
        rows = [row for found in cases.values() for row in found]
        if rows:
            versions = run.run["versions"]
            about = [f"{name} {versions[name]}" for name in ("torch", "transformers") if name in versions]
            about += [run.run["time"][:10], f"revision {short(run.run['revision'])}"]
            count = processes(run)
            about.append(f"medians over {count} processes, with their range" if count else "one process")
            rule = "|" + "---|" * (header.count("|") - 1)
            lines += [f"**{run.run['device']}** ({', '.join(about)})", "", header, rule]
            lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
            lines += [f"{line}\n" for line in _skipped([case for case in run.cases if cases[case.name]])]
    return "\n".join(lines)


def _headline_rows(case: Case, also: Collection[str]) -> Iterator[list[str]]:
    if (case.headline or case.name in also) and case.ours in case.samples:
        best = case.best_peer
        ours, peer = (amount(case.timings.median(name), case.unit) if name else "" for name in (case.ours, best))
        rivals = (best, case.best_of(BASELINE), case.best_of(LIMIT))
        ratios = [ratio(case, rival) if rival else "" for rival in rivals]
        yield [case.name, ours, throughput(case, case.ours), f"{best}, {peer}" if best else "", *ratios]


def _contender_rows(case: Case, group: str) -> Iterator[list[str]]:
    if case.group == group and case.peers:
        for place, name in enumerate(sorted(case.samples, key=case.timings.median)):
            took = amount(case.timings.median(name), case.unit)
            against = "" if name == case.ours else ratio(case, name)
            yield ["" if place else case.name, name, took, throughput(case, name), against]


def _target_rows(case: Case) -> Iterator[list[str]]:
    for verdict in case.verdicts:
        yield [case.name, str(verdict.target), ", ".join(measured(verdict)), verdict.verdict]


def _skipped(cases: Sequence[Case]) -> Iterator[str]:
    """Who is not in every row. How a library was at its best is in the file."""
    skipped: dict[str, list[str]] = {}
    for case in cases:
        for name, reason in case.skipped.items():
            if UNDER not in name:
                skipped.setdefault(name, []).append(reason)
    if skipped:
        counts = {name: f"{len(reasons)} row{'s' * (len(reasons) > 1)}" for name, reasons in skipped.items()}
        told = [f"{name} in {counts[name]} ({reasons[0]})" for name, reasons in skipped.items()]
        yield f"Skipped: {'; '.join(told)}."
