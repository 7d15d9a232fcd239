"""Interleaving, and what is concluded from rounds."""

import gc

import pytest

from bench.harness import timing
from bench.harness.timing import Timings, exponent, interleave


def test_contenders_take_turns():
    order = []
    contenders = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = interleave(contenders, seconds=0.0, min_rounds=3, min_sample=0.0)
    warm_ups = timing.WARM_UPS * 3
    assert order[warm_ups:] == ["a", "b", "c"] * 3
    assert {name: len(values) for name, values in timings.seconds.items()} == {"a": 3, "b": 3, "c": 3}


@pytest.mark.parametrize("slow", [True, False])
def test_no_clock_decides_how_often_ranks_step(slow, monkeypatch):
    now, calls = [0.0], []

    def call():
        now[0] += 10.0 if slow else 1e-6
        calls.append(now[0])

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    interleave({"step": call}, seconds=0.0, min_rounds=5, min_sample=0.0)
    assert len(calls) == timing.WARM_UPS + 5


def test_a_short_call_is_repeated_until_it_can_be_measured(monkeypatch):
    """10 µs on a clock of its own: a sample of a millisecond is a hundred calls, and its mean is 10 µs."""
    now, calls = [0.0], []

    def call():
        now[0] += 1e-5
        calls.append(now[0])

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    timings = interleave({"short": call}, seconds=0.0, min_rounds=2, min_sample=1e-3)
    assert len(calls) == timing.WARM_UPS + 2 * 100
    assert timings.median("short") == pytest.approx(1e-5)


def test_the_collector_rests_while_rounds_run():
    states = []
    interleave({"a": lambda: states.append(gc.isenabled())}, seconds=0.0, min_rounds=2, min_sample=0.0)
    assert states[-2:] == [False, False]
    assert gc.isenabled()


def test_ratios_are_of_rounds_not_of_medians():
    """The machine slows down in the middle: both contenders do, and the ratio does not."""
    timings = Timings({"ours": [1.0, 1.0, 5.0, 5.0, 1.0], "peer": [2.0, 2.0, 10.0, 10.0, 2.0]})
    assert timings.ratio("ours", "peer") == 2.0
    assert timings.ratio_spread("ours", "peer") == 0.0
    assert timings.spread("ours") == 4.0


@pytest.mark.parametrize(
    "peer, verdict",
    [
        ([2.0, 2.1, 1.9, 2.0, 2.0], "faster"),
        ([0.5, 0.52, 0.49, 0.5, 0.5], "slower"),
        ([1.0, 1.01, 0.99, 1.0, 1.01], "even"),
        ([1.2, 0.8, 1.6, 0.7, 1.3], "noisy"),
        ([1.2, 1.9, 0.9, 1.15, 2.5], "noisy"),  # a median of 1.2, and quartiles further apart than that
    ],
)
def test_no_claim_is_wider_than_its_spread(peer, verdict):
    assert Timings({"ours": [1.0] * 5, "peer": peer}).verdict("ours", "peer") == verdict


def test_exponents():
    assert exponent({1: 3.0, 2: 3.0, 4: 3.0}) == pytest.approx(0.0)
    assert exponent({10: 5.0, 20: 20.0, 40: 80.0}) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="at least 2 sizes"):
        exponent({10: 1.0})
