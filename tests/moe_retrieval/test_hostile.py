"""The real commands against hostile input: `python -m tests.moe_retrieval.hostile` prints the same as a table."""

import pytest

from tests.moe_retrieval.hostile import make_home, outcomes


@pytest.mark.slow  # every case is a process that imports torch
def test_no_case_ends_in_a_traceback_or_loses_anything(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    make_home(home)
    assert not {outcome.case.name: (outcome.fault, outcome.said) for outcome in outcomes(home) if outcome.fault}
