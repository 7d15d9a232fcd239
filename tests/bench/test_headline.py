"""Headlines: several fresh processes a case, what is kept of them, and how they are shown."""

import json
import math
from dataclasses import asdict, replace

import pytest

from bench import headline
from bench.harness import allocators, fresh, record, turns
from bench.harness.record import Case, Run, case_of, over_processes
from bench.harness.suite import Suite
from bench.harness.target import BEST, Target
from bench.reports import markdown
from tests.bench.runs import a_layer, a_memory, a_run


def a_process(ours=1.0, loop=2.0, **about):
    samples = {"kernels": [ours, 9.0, ours], "loop": [loop, loop, 9.0], "dense": [0.9], "dense onednn": [0.8]}
    settings = {"tokens": 4096}
    return Case("layer", "MoE", samples, settings=settings, headline=True, **about)


def merged(*loops, peers=()):
    """Processes in which the loop takes so long, and in which it does under jemalloc."""
    turns = [[("", a_process(loop=loop))] for loop in loops]
    for turn, loop in zip(turns, peers):
        turn.append(("jemalloc", replace(a_process(), samples={"loop": [loop]})))
    return over_processes(turns)


def test_a_sample_is_the_median_of_a_process():
    case = merged(1.5, 2.5, 2.0)
    assert case.samples["kernels"] == [1.0, 1.0, 1.0]
    assert case.samples["loop"] == [1.5, 2.5, 2.0]
    assert case.timings.ratio("kernels", "loop") == 2.0
    assert case.range("kernels", "loop") == (1.5, 2.5)
    assert case.spread("kernels", "loop") == pytest.approx(math.log(2.5 / 1.5) / 2)
    assert case.processes[1]["loop"] == [2.5, 2.5, 9.0], "every round is kept"
    assert case_of(json.loads(json.dumps(asdict(case)))) == case


def test_the_better_way_of_a_peer_counts():
    case = merged(2.0, 2.0, peers=(1.4, 1.6))
    assert case.best_peer == case.best_of("loop") == "loop under jemalloc"
    assert case.best_of("dense") == "dense onednn"
    assert case.best_of("liger") is None
    assert "1.50x (1.40 to 1.60)" in markdown.headlines([a_run([case])])


def test_a_contender_that_a_process_lacks_is_skipped():
    lacking = a_process(skipped={"liger": "needs a GPU"}, chosen={"loop": "batch 4"})
    lacking.samples.pop("dense")
    case = over_processes([[("", a_process(chosen={"loop": "batch 16"}))], [("", lacking)]])
    assert "dense" not in case.samples
    assert case.skipped == {"liger": "needs a GPU", "dense": "took part in 1 of 2 processes"}
    assert case.chosen == {"loop": "batch 16 or batch 4"}


@pytest.mark.parametrize(
    "loops, verdict",
    [
        ((2.0, 2.1, 2.2), "met"),  # 2.1 is above 1.9 by 10%; half of the range is 5%
        ((1.8, 2.1, 2.4), "undecided"),
        ((1.7, 1.8, 2.6), "missed"),
    ],
)
@pytest.mark.parametrize("peer", ["loop", BEST])
def test_a_target_is_met_by_more_than_half_of_the_range(loops, verdict, peer):
    assert Target("kernels", peer, least=1.9).judge(merged(*loops)).verdict == verdict


def test_the_verdict_is_on_all_processes_alone(measured, monkeypatch):
    """A case that has targets of its own brings a verdict on each process."""
    target = Target("kernels", "loop", least=2.4)
    call = measured[0]

    def judged(*arguments, **environment):
        case = case_of(call(*arguments, **environment))
        return asdict(replace(case, verdicts=[target.judge(case)]))

    monkeypatch.setattr(headline.fresh, "call", judged)
    name = next(iter(headline.HEADLINES))
    monkeypatch.setattr(headline, "HEADLINES", {name: replace(headline.HEADLINES[name], targets=[target])})
    (verdict,) = headline.over_processes(name, "headline", 2, {}).verdicts
    assert (verdict.figure, verdict.verdict) == (2.5, "undecided")


def test_a_limit_is_its_better_way():
    found = Target("kernels", "dense", most=1.3).judge(merged(2.0, 2.0))
    assert (found.peer, found.figure) == ("dense onednn", pytest.approx(1.25))


def test_the_table_is_of_the_headlines_where_a_machine_has_them():
    one, several = a_run(), a_run([merged(1.5, 2.5, 2.0), a_memory()])
    for runs in ([one, several], [several, one]):
        rows = markdown.headlines(runs)
        assert rows.count("**A CPU, 2 cores**") == 1
        assert "medians over 3 processes, with their range" in rows
        assert "| MoE | 1.00 s | 4.10k tokens | loop, 2.00 s | 2.00x (1.50 to 2.50) | 2.00x (1.50 to 2.50) |" in rows
    assert "one process" in markdown.headlines([one])


def test_what_is_left_out_is_told_below_the_table():
    left_out = {"liger": "needs a GPU", "liger under jemalloc": "needs a GPU"}
    rows = markdown.headlines([a_run([a_layer(skipped=left_out) for _ in range(2)])])
    assert rows.endswith("|\n\nSkipped: liger in 2 rows (needs a GPU).\n")


def test_the_order_turns_from_process_to_process():
    contenders = dict.fromkeys(["kernels", "loop", "dense"])
    orders = [list(Suite("smoke", headline.CPU, turn=turn).taking_part(contenders)) for turn in range(4)]
    assert orders[0] == ["kernels", "loop", "dense"]
    assert orders[1:3] == [["loop", "dense", "kernels"], ["dense", "kernels", "loop"]]
    assert orders[3] == orders[0]
    assert list(Suite("smoke", headline.CPU, turn=1, peers_only=True).taking_part(contenders)) == ["dense", "loop"]


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """What the command measures, instead of what it starts."""
    calls = []

    def call(function, name, mode, turn, kind, chosen, **environment):
        calls.append((name, int(turn), kind, environment))
        call.known.append(json.loads(chosen))
        if len(calls) == call.stop_at:
            raise KeyboardInterrupt
        chosen = {"loop": f"batch {2 + len(environment)}"}
        return asdict(replace(a_process(loop=2.0 + int(turn)), name=name, chosen=chosen))

    call.stop_at, call.known = None, []
    monkeypatch.setattr(headline.fresh, "call", call)
    monkeypatch.setattr(headline, "peaks", lambda *arguments, **settings: {"copy": 1e9})
    monkeypatch.setattr(headline.allocators, "available", dict)
    monkeypatch.setattr(headline, "describe", lambda device: {"device": "A CPU", "versions": {}, "revision": "abc"})
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(turns, "PARTS", tmp_path / "parts")
    return call, calls, tmp_path


def test_a_run_that_was_stopped_goes_on(measured, capsys):
    call, calls, folder = measured
    call.stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        headline.main(["--processes", "2"])
    (part,) = (folder / "parts").iterdir()
    run = Run.load(part)
    assert (len(run.cases), run.run["partial"], run.run["processes"]) == (2, True, 2)
    assert not (folder / "results").exists(), "a part is not quoted"
    calls.clear()
    call.stop_at = None
    assert headline.main(["--processes", "2"]) == 0
    assert [name for name, *_ in calls[::2]] == list(headline.HEADLINES)[2:]
    assert [turn for _, turn, *_ in calls[:2]] == [0, 1]
    assert not part.exists()
    (path,) = (folder / "results").iterdir()
    run = Run.load(path)
    assert [case.name for case in run.cases] == list(headline.HEADLINES)
    assert run.run["partial"] is False
    assert record.committed(folder / "results") == [path]
    assert sum(case.headline for case in run.cases) == len(run.cases) - 1, "one case has a target and no row"
    assert "minutes on two quiet cores" in capsys.readouterr().out


def test_one_case_is_measured_again_in_a_run_like_it_alone(measured, capsys):
    _, calls, folder = measured
    headline.main(["--processes", "2"])
    calls.clear()
    headline.main(["--processes", "2", "--only", "search"])
    assert len(calls) == 2
    (whole,) = (folder / "results").iterdir()
    before = whole.read_text()
    headline.main(["--processes", "3", "--only", "search"])
    (part,) = (folder / "parts").iterdir()
    assert [case.name.split()[0] for case in Run.load(part).cases] == ["search"]
    assert whole.read_text() == before, "a run of another kind is left as it is"


def test_files_that_differ_from_their_commit_are_measured_anew(measured, monkeypatch):
    _, calls, _ = measured
    monkeypatch.setattr(headline, "describe", lambda _: {"device": "A CPU", "versions": {}, "revision": "abc-changed"})
    for _ in range(2):
        calls.clear()
        headline.main(["--processes", "1"])
        assert len(calls) == len(headline.HEADLINES)


@pytest.mark.parametrize("arguments", [["--processes", "0"], ["--only", "nothing of this name"]])
def test_bad_input_is_one_line(measured, capsys, arguments):
    with pytest.raises(SystemExit):
        headline.main(arguments)
    assert capsys.readouterr().err.count("error: ") == 1


def test_large_cases_run_under_other_allocators_too(measured, monkeypatch):
    _, calls, folder = measured
    monkeypatch.setattr(headline.allocators, "available", lambda: {"jemalloc": "/lib/libjemalloc.so.2"})
    large = next(name for name, about in headline.HEADLINES.items() if about.large)
    headline.main(["--processes", "1", "--only", large])
    assert [call[2:] for call in calls] == [("all", {}), ("peers", {"LD_PRELOAD": "/lib/libjemalloc.so.2"})]
    (case,) = Run.load(next((folder / "parts").iterdir())).cases
    assert "loop under jemalloc" in case.samples


def test_how_a_library_is_at_its_best_is_found_out_once_under_each_allocator(measured, monkeypatch):
    monkeypatch.setattr(headline.allocators, "available", lambda: {"jemalloc": "/lib/libjemalloc.so.2"})
    large = next(name for name, about in headline.HEADLINES.items() if about.large)
    headline.main(["--processes", "2", "--only", large])
    assert measured[0].known == [{}, {}, {"loop": "batch 2"}, {"loop": "batch 3"}]


@pytest.mark.slow
def test_a_headline_in_fresh_processes(monkeypatch, capsys):
    """The smallest case, as the command measures it."""
    name = next(name for name in headline.HEADLINES if "SBMoE" in name)
    monkeypatch.setattr(headline, "HEADLINES", {name: headline.HEADLINES[name]})
    assert headline.main(["--smoke"]) == 0
    shown = capsys.readouterr().out
    assert "1 cases, 2 processes each" in shown
    assert "against loop: " in shown
    assert "nothing is written" in shown


def test_allocators_are_those_that_are_given(monkeypatch):
    monkeypatch.setenv("BENCH_ALLOCATORS", "/opt/libjemalloc.so.2:/opt/libtcmalloc_minimal.so.4")
    expected = {"jemalloc": "/opt/libjemalloc.so.2", "tcmalloc_minimal": "/opt/libtcmalloc_minimal.so.4"}
    assert allocators.available() == (expected if allocators.MAPS.exists() else {})


def test_an_allocator_that_is_not_loaded_is_an_error():
    if not allocators.MAPS.exists():
        pytest.skip("what is loaded is read from Linux's /proc")
    with pytest.raises(RuntimeError, match="was not loaded"):
        fresh.call("bench.harness.allocators:check_preloaded", LD_PRELOAD="/nowhere/libjemalloc.so")
    assert fresh.call("bench.harness.allocators:check_preloaded") is None
