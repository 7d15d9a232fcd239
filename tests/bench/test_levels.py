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
        assert case.work["flops"] > 1e9
        assert case.figures["gflops"]["portable"] > 0
    heading, row = levels.table(cases).splitlines()
    assert heading.split()[-4:] == ["bf16", "hot", "fp32", "hot"]
    assert row.split()[0] == "portable"
    run = Run({"device": "here"}, {}, cases)
    run.save(tmp_path / "levels.json")
    assert Run.load(tmp_path / "levels.json").cases[0].ours == ""
