import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_retrieval.training.order import BatchOrder


@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 2**40), st.integers(0, 5), st.integers(1, 4))
def test_every_example_once_an_epoch_whatever_the_number_of_ranks(num_examples, batch_size, seed, epoch, world):
    order = BatchOrder(num_examples, batch_size, seed)
    batches = order.batches(epoch)
    assert len(batches) == len(order)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert sorted(np.concatenate(batches).tolist()) == list(range(num_examples))
    for batch in batches:
        shares = [batch[rank::world] for rank in range(world)]
        assert sorted(np.concatenate(shares).tolist()) == sorted(batch.tolist())
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return np.concatenate(BatchOrder(500, 32, seed).batches(epoch)).tolist()

    assert order(7, 3) == order(7, 3)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert order(0, 0) != list(range(500))


@pytest.mark.parametrize(
    "arguments, message", [((0, 1, 0), "num_examples"), ((1, 0, 0), "batch_size"), ((1, 1, -1), "seed")]
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchOrder(*arguments)
