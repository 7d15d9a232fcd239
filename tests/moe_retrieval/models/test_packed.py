"""Sequences laid end to end, whole and in part, are those of the lists."""

import pytest
import torch

from moe_retrieval.models.encoder import pack
from moe_retrieval.models.packed import PackedTokens
from tests.moe_retrieval.tiny import token_lists

LISTS = [*token_lists(7), [], [3]]


@pytest.mark.parametrize("start,stop", [(0, 9), (0, 0), (2, 5), (6, 20), (5, 3), (8, 9), (-3, None)])
def test_a_part_is_that_of_the_lists(start, stop):
    packed, lists = PackedTokens(LISTS)[start:stop], LISTS[start:stop]
    assert len(packed) == len(lists)
    assert list(packed) == lists
    assert packed.num_tokens == sum(map(len, lists))
    for ours, theirs in zip(pack(packed), pack(lists)):
        assert ours == theirs if isinstance(ours, int) else torch.equal(ours, theirs)
    assert list(packed[1:]) == lists[1:]


def test_what_an_encoder_takes():
    ids, starts, longest = pack([[5, 6, 7], [], [8]])
    assert (ids.tolist(), starts.tolist(), longest) == ([5, 6, 7, 8], [0, 3, 3, 4], 3)
    assert (ids.dtype, starts.dtype) == (torch.int64, torch.int32)
    ids, starts, longest = pack([])
    assert (ids.tolist(), starts.tolist(), longest) == ([], [0], 0)
    assert ids.dtype == torch.int64


def test_one_sequence():
    packed = PackedTokens(LISTS)
    assert packed[3] == LISTS[3]
    assert packed[2:][-1] == LISTS[-1]
    with pytest.raises(IndexError):
        packed[9]


def test_a_part_of_what_is_pinned_is_pinned(monkeypatch):
    """The same memory: nothing is copied on the host again."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    pinned = PackedTokens(LISTS).pinned()
    assert list(pinned) == LISTS
    assert pinned[2:5].ids_T is pinned.ids_T
