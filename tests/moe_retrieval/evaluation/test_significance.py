"""The randomisation test against all exchanges, and on pairs that do not differ; the bootstrap against SciPy's."""

import itertools

import numpy as np
import pytest
from scipy import stats

from moe_retrieval.evaluation.significance import confidence_interval, randomization_test


def test_few_pairs_are_exact():
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 9):
        a, b = rng.standard_normal(count), rng.standard_normal(count)
        flips = itertools.product([1, -1], repeat=count)
        observed = abs(np.sum(a - b))
        extreme = [abs(np.dot(signs, a - b)) >= observed - 1e-9 for signs in flips]
        assert randomization_test(a, b) == pytest.approx(np.mean(extreme))


def test_many_pairs():
    rng = np.random.default_rng(0)
    a = rng.uniform(size=300)
    noise = rng.standard_normal(300)
    assert randomization_test(a, a) == 1.0
    assert randomization_test(a, a + 0.001 * noise + 0.0005) < 0.001
    assert randomization_test(a + 0.3, a + 0.1 * noise) == pytest.approx(1 / 100_001)
    p = randomization_test(a, a + noise)
    assert p == randomization_test(a, a + noise)
    assert p == randomization_test(a + noise, a)
    assert p != randomization_test(a, a + noise, seed=1)


def test_p_is_uniform_if_nothing_differs():
    rng = np.random.default_rng(1)
    ps = [randomization_test(rng.standard_normal(40), rng.standard_normal(40), rounds=200) for _ in range(400)]
    assert [np.mean(np.array(ps) < level) for level in (0.1, 0.5)] == pytest.approx([0.1, 0.5], abs=0.06)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"same queries, got shapes \(2,\) and \(3,\)"):
        randomization_test([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        randomization_test([1], [2], rounds=0)


@pytest.mark.parametrize("count", [30, 300])
def test_the_interval_is_that_of_another_bootstrap(count):
    values = np.random.default_rng(count).beta(0.4, 0.6, count)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1))
    assert confidence_interval(values) == pytest.approx(tuple(theirs.confidence_interval), abs=0.1 / count**0.5)
    assert confidence_interval(values) == confidence_interval(values)


def test_an_interval_needs_queries():
    assert confidence_interval([0.5]) == (0.5, 0.5)
    with pytest.raises(ValueError, match=r"got shape \(0,\)"):
        confidence_interval([])
