"""The first cases of each subject: what the script draws at length still runs, and a wrong result ends it."""

import random

import pytest

from tests.kernels.fuzz import __main__ as fuzz


@pytest.mark.parametrize("subject", fuzz.SUBJECTS)
def test_first_cases(subject, backend):
    for number in range(1 if backend == "triton" else 3):
        fuzz.run(subject, number, backend)


def test_a_case_is_its_number():
    first, second = (fuzz.run("experts", 5, "eager") for _ in range(2))
    assert first == second != fuzz.run("experts", 6, "eager")


def test_a_wrong_result_is_found(monkeypatch, capsys):
    def wrong(draw: random.Random, backend: str):
        assert draw.random() < 0.5
        return "held"

    monkeypatch.setitem(fuzz.SUBJECTS, "wrong", wrong)
    with pytest.raises(AssertionError):
        fuzz.fuzz(["wrong"], "eager", seed=0, minutes=0.2)
    number = int(capsys.readouterr().out.split("--case ")[1].split()[0])
    with pytest.raises(AssertionError):
        fuzz.run("wrong", number, "eager")
