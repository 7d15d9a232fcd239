"""Result files as Markdown tables: the headline cases of a machine, and what became of its targets."""

from collections.abc import Callable, Iterable, Iterator

from bench.harness.machine import short
from bench.harness.record import BASELINE, LIMIT, Case, Run
from bench.reports.terminal import amount, measured, ratio


def headlines(runs: Iterable[Run]) -> str:
    """One table a machine."""
    return _tables(runs, "| case | ours | best peer | against it | against the loop | against dense |", _headline_rows)


def targets(runs: Iterable[Run]) -> str:
    """One table a run; ratios say how many times as fast, or what part of the cost."""
    return _tables(runs, "| case | target | measured | verdict |", _target_rows)


def _tables(runs: Iterable[Run], header: str, rows_of: Callable[[Case], Iterator[list[str]]]) -> str:
    lines = []
    for run in runs:
        rows = [row for case in run.cases for row in rows_of(case)]
        if rows:
            versions = run.run["versions"]
            packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers") if name in versions)
            about = f"({packages}, {run.run['time'][:10]}, revision {short(run.run['revision'])})"
            rule = "|" + "---|" * (header.count("|") - 1)
            lines += [f"**{run.run['device']}** {about}", "", header, rule]
            lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    return "\n".join(lines)


def _headline_rows(case: Case) -> Iterator[list[str]]:
    if case.headline and case.ours in case.samples:
        best = case.best_peer
        shown = "" if best is None else f"{best}, {amount(case.timings.median(best), case.unit)}"
        ratios = [ratio(case, peer) if peer in case.samples else "" for peer in (best, BASELINE, LIMIT)]
        yield [case.name, amount(case.timings.median(case.ours), case.unit), shown, *ratios]


def _target_rows(case: Case) -> Iterator[list[str]]:
    for verdict in case.verdicts:
        yield [case.name, str(verdict.target), ", ".join(measured(verdict)), verdict.verdict]
