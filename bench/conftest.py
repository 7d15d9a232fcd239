"""The flags of the benchmark, and what happens around its cases.

pytest bench/                                 each case once, small: a smoke test
pytest bench/ --benchmark                     everything, on the GPU if there is one
pytest bench/ --benchmark --benchmark-quick   the cases that matter most
"""

import time
from itertools import chain
from pathlib import Path

import pytest
import torch

from bench.harness import machine
from bench.harness.record import Run, result_path
from bench.harness.suite import Suite
from bench.reports import plots, terminal


def pytest_addoption(parser):
    group = parser.getgroup("moe-retrieval benchmark")
    group.addoption("--benchmark", action="store_true", help="measure, and write the results; else a smoke test")
    group.addoption("--benchmark-quick", action="store_true", help="about 5 minutes on 2 cores")
    group.addoption("--benchmark-device", metavar="DEVICE", help="cpu, cuda, cuda:1 (default: the GPU if there is one)")
    group.addoption("--benchmark-seconds", metavar="N", type=float, help="start no case after this time")
    group.addoption("--benchmark-output", metavar="FILE", type=Path, help="where the results go (see bench/README.md)")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    benchmark, quick = config.getoption("--benchmark", False), config.getoption("--benchmark-quick", False)
    asked = config.getoption("--benchmark-device", None)
    if (quick or config.getoption("--benchmark-output", None)) and not benchmark:
        raise pytest.UsageError("--benchmark-quick and --benchmark-output go with --benchmark")
    if benchmark and config.getoption("numprocesses", None):
        raise pytest.UsageError("--benchmark measures in one process: it does not go with -n")
    try:
        device = torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise pytest.UsageError(f"--benchmark-device: {asked!r} cannot be used: {error}") from error
    config.suite = Suite("smoke" if not benchmark else "quick" if quick else "full", device)
    config.suite.deadline = time.monotonic() + (config.getoption("--benchmark-seconds", None) or float("inf"))
    if benchmark and not config.getoption("--benchmark-verbose", True):
        config.option.benchmark_quiet = True  # pytest-benchmark's table has one contender a case; ours has all


def pytest_generate_tests(metafunc):
    """A module's `cases(mode, device)` are the values of `case` in its tests."""
    if "case" in metafunc.fixturenames:
        suite = metafunc.config.suite
        metafunc.parametrize("case", metafunc.module.cases(suite.mode, suite.device), ids=selectable)


def selectable(case):
    """`-k` takes no equals sign and no blank: MoE-T4096-H384-..."""
    return str(case).replace("=", "").replace(" ", "-")


def pytest_collection_modifyitems(config, items):
    here = Path(__file__).parent
    chosen = {item.path.name for item in items if item.path.parent == here}  # doctests of other files among them
    config.suite.partial |= not {path.name for path in here.glob("test_*.py")} <= chosen


def pytest_deselected(items):
    items[0].config.suite.partial = True


@pytest.fixture
def suite(request):
    suite = request.config.suite
    if time.monotonic() > suite.deadline:
        suite.partial = True
        pytest.skip("the time was up")
    torch.manual_seed(0)
    if suite.mode != "smoke":
        suite.on_case = lambda case: replay(request, case)
    return suite


def replay(request, case):
    """pytest-benchmark, where it is installed, saves and compares ours too: its clock tells the rounds of `case`."""
    seconds = case.samples.get(case.ours)
    if case.unit != "s" or not seconds or not request.config.pluginmanager.hasplugin("benchmark"):
        return
    ticks = chain.from_iterable((0.0, second) for second in seconds)
    request.node.add_marker(pytest.mark.benchmark(timer=lambda: next(ticks), group=case.group))
    request.getfixturevalue("benchmark").pedantic(lambda: None, rounds=len(seconds))
    request.config.suite.on_case = lambda case: None  # it takes one a test


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    suite = config.suite
    if suite.mode == "smoke" or not suite.cases:
        return
    about = machine.describe(suite.device)
    about |= {"mode": suite.mode, "partial": suite.partial or exitstatus != pytest.ExitCode.OK}
    about["skipped"] = dict(map(name_and_reason, terminalreporter.stats.get("skipped", [])))
    run = Run(about, suite.peaks, suite.cases)
    path = config.getoption("--benchmark-output") or default_output(config, about)
    run.save(path)
    terminalreporter.section("benchmark")
    for line in (*terminal.lines(run), "", f"results: {path}", *plots.draw(run, path)):
        terminalreporter.write_line(line)


def name_and_reason(report):
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return report.nodeid.rpartition("/")[2], reason.removeprefix("Skipped: ")


def default_output(config, about):
    """Only a whole run may replace the file that the README quotes."""
    if about["mode"] == "full" and not about["partial"]:
        return result_path(about["device"])
    return config.rootpath / ".benchmarks" / result_path(about["device"], "part" if about["partial"] else "quick").name
