"""What an epoch has of several data sets."""

from collections import Counter

import numpy as np
import pytest

from moe_retrieval.training.mixture import Mixture, Part


class Letters(list):
    """Stands for training pairs."""


def mixture(*parts, seed=0):
    return Mixture([Part(Letters(letters), np.array(rows), weight) for letters, rows, weight in parts], seed)


def drawn(mixed, epoch):
    """-> place of the part and example -> how often it comes"""
    return Counter(mixed.example(int(number)) for number in mixed.of_epoch(epoch))


def test_one_set_is_gone_through_in_order_once():
    mixed = mixture(("abcdef", [0, 2, 5], 1.0))
    assert mixed.of_epoch(0).tolist() == mixed.of_epoch(7).tolist() == [0, 1, 2]
    assert [mixed.example(number) for number in range(3)] == [(0, "a"), (0, "c"), (0, "f")]


def test_a_weight_is_how_often_a_pair_comes_in_an_epoch():
    mixed = mixture(("abc", [0, 1, 2], 1.0), ("xyz", [0, 2], 2.0))
    assert len(mixed) == 7
    assert drawn(mixed, 3) == {(0, "a"): 1, (0, "b"): 1, (0, "c"): 1, (1, "x"): 2, (1, "z"): 2}


@pytest.mark.parametrize("weight, least, most, size", [(0.25, 0, 1, 10), (2.5, 2, 3, 100)])
def test_a_fraction_is_another_share_in_every_epoch(weight, least, most, size):
    mixed = mixture(("ab", [0, 1], 1.0), (range(40), range(40), weight))
    epochs = [
        Counter({name: times for (part, name), times in drawn(mixed, epoch).items() if part}) for epoch in range(5)
    ]
    assert all(epoch.total() == size for epoch in epochs)
    assert all(least <= epoch[name] <= most for epoch in epochs for name in range(40))
    assert len({frozenset(epoch.items()) for epoch in epochs}) == 5
    assert len(mixed) == 2 + size


def test_it_is_a_function_of_seed_and_epoch():
    parts = ("ab", [0, 1], 1.0), (range(40), range(40), 0.5)
    again = [mixture(*parts, seed=seed).of_epoch(epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert again == [mixture(*parts, seed=seed).of_epoch(epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, again))) == 4


def test_the_least_weight_takes_a_pair():
    assert len(mixture(("ab", [0, 1], 1.0), ("xyz", [0, 1, 2], 0.001))) == 3
