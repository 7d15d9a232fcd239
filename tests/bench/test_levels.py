"""The measurement behind the table of instruction sets."""

import shutil

import pytest

from bench import levels
from bench.harness.record import Run


def test_a_measurement(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("no compiler")
    programs = {"portable": levels.compiled("portable", tmp_path)}
    cases = [levels.measure(programs, dtype, "hot", rounds=2, smoke=True) for dtype in levels.TYPES]
    for case in cases:
        assert len(case.samples["portable"]) == 2
        assert case.figures["gflops"]["portable"] > 0
    heading, row = levels.table(cases).splitlines()
    assert heading.split()[-4:] == ["bf16", "hot", "fp32", "hot"]
    assert row.split()[0] == "portable"
    run = Run({"device": "here"}, {}, cases)
    run.save(tmp_path / "levels.json")
    assert Run.load(tmp_path / "levels.json").cases[0].ours == ""


def test_a_level_is_rated_by_its_own_work(monkeypatch):
    """Tiles differ in size: that of the first does twice the work of the second's in half as much time again."""
    work = {"first": (2e9, 1.5), "second": (1e9, 1.0)}
    monkeypatch.setattr(levels, "seconds", lambda program, *_: work[program])
    case = levels.measure({name: name for name in work}, "fp32", "hot", rounds=3, smoke=True)
    assert case.figures["gflops"] == pytest.approx({"first": 4 / 3, "second": 1.0})
    assert case.samples["second"] == [1.0] * 3
