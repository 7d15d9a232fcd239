"""What a target requires, and when it is met."""

import pytest

from bench.cpu_encoder import MEMORY, QUALITY
from bench.harness.record import Case
from bench.harness.target import BEST, Target


def judge(target, **samples):
    return target.judge(Case("group", "name", samples, ours="ours"))


@pytest.mark.parametrize("peer, verdict", [([4.0, 4.2, 4.1], "met"), ([4.0, 3.9, 3.8], "missed")])
def test_at_least_so_many_times_as_fast(peer, verdict):
    found = judge(Target("ours", "peer", least=4.0), ours=[1.0, 1.0, 1.0], peer=peer)
    assert (found.figure, found.verdict) == (sorted(peer)[1], verdict)
    assert found.fastest == min(peer)


@pytest.mark.parametrize("ours, verdict", [([1.02, 1.03, 1.04], "undecided"), ([1.02, 1.04, 1.05], "missed")])
def test_at_most_so_much_of_a_time(ours, verdict):
    found = judge(Target("ours", "peer", most=1.03), ours=ours, peer=[1.0, 1.0, 1.0])
    assert (found.figure, found.fastest, found.verdict) == (ours[1], 1.02, verdict)


def test_a_slow_moment_of_the_machine_changes_no_verdict():
    rounds = {"ours": [1.0, 9.0, 1.0], "peer": [2.0, 18.0, 2.0]}
    assert judge(Target("ours", "peer", least=2.0), **rounds).verdict == "met"
    assert judge(Target("peer", "ours", most=2.0), **rounds).verdict == "met"


def test_what_is_met_by_less_than_the_spread_is_undecided():
    ours, close, far = [1.0] * 5, [1.9, 2.0, 2.1, 2.2, 2.3], [3.9, 4.0, 4.1, 4.2, 4.3]
    found = judge(Target("ours", "peer", least=2.0), ours=ours, peer=close)
    assert (found.verdict, round(found.spread, 3)) == ("undecided", 0.095)
    assert judge(Target("ours", "peer", least=2.0), ours=ours, peer=far).verdict == "met"
    assert judge(Target("ours", "peer", least=2.2), ours=ours, peer=close).verdict == "missed"


def test_the_best_peer_is_neither_ours_nor_the_limit():
    rounds = {"ours": [1.0, 1.0], "slow": [4.0, 1.8], "fast": [2.0, 2.0], "dense": [0.5, 0.5]}
    found = judge(Target("ours", BEST, least=1.5), **rounds)
    assert (found.peer, found.figure, found.fastest) == ("fast", 2.0, 1.8)


def test_memory_and_quality():
    def memory(ours):
        samples = [{target.ours: [ours], target.peer: [1000.0]} for target in MEMORY]
        (verdict,) = {judge(target, **found).verdict for target, found in zip(MEMORY, samples)}
        return verdict

    def quality(bf16):
        (target,) = QUALITY
        return judge(target, bf16=[bf16], fp32=[0.645]).verdict

    assert [memory(ours) for ours in (500.0, 501.0)] == ["met", "missed"]
    assert [quality(bf16) for bf16 in (0.6435, 0.6465, 0.6425, 0.6475)] == ["met"] * 2 + ["missed"] * 2
