"""What the ops return is a tensor like any other, also where its memory comes from the pool."""

import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
import torch.multiprocessing  # for what the ForkingPickler knows of tensors
from torch.utils.data import default_collate

import kernels

TOKENS, HIDDEN = 2048, 512
"""4 MB in fp32: large memory begins at 2."""


@pytest.fixture
def pooled(native):
    """-> y and, with it, the gradient of x: both of a size that the pool gives"""
    torch.manual_seed(0)
    layer = kernels.MoE(HIDDEN, 32, num_experts=2, top_k=1, balance_coef=0.0)
    x = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    with kernels.use_backend("native"):
        y = layer(x)
        y.sum().backward()
    return y.detach(), x.grad


def test_resizing(pooled):
    for tensor in pooled:
        before = tensor.clone()
        tensor.resize_(TOKENS + 9, HIDDEN)
        assert torch.equal(tensor[:TOKENS], before)
        tensor.fill_(1.0)
        tensor.resize_(3, HIDDEN)
        assert tensor.sum() == 3 * HIDDEN


def test_a_storage_that_is_freed_and_filled_again(pooled):
    """As sharded data parallelism does it between uses of a parameter."""
    for tensor in pooled:
        storage, before = tensor.untyped_storage(), tensor.clone()
        storage.resize_(0)
        assert storage.nbytes() == 0
        storage.resize_(before.nbytes)
        tensor.copy_(before)
        assert torch.equal(tensor, before)


def test_memory_that_is_given_up_goes_back_to_the_pool(native):
    layer, x = kernels.MoE(HIDDEN, 32, num_experts=2, top_k=1), torch.randn(TOKENS, HIDDEN)
    with torch.no_grad(), kernels.use_backend("native"):
        y = layer(x)
        address = y.data_ptr()
        y.resize_(TOKENS + 9, HIDDEN)
        assert layer(x).data_ptr() == address


def test_as_the_place_of_a_result(pooled):
    for tensor in pooled:
        a, b = torch.randn(TOKENS + 9, 4), torch.randn(4, HIDDEN)
        assert torch.equal(torch.mm(a, b, out=tensor.resize_(0)), a @ b)


def test_shared_copied_and_sent(pooled):
    for tensor in pooled:
        before = tensor.clone()
        assert torch.equal(default_collate([tensor, tensor]), torch.stack([before, before]))
        assert torch.equal(pickle.loads(pickle.dumps(tensor)), before)
        assert torch.equal(tensor.share_memory_(), before)
        assert tensor.is_shared()
        assert torch.equal(pickle.loads(bytes(ForkingPickler.dumps(tensor))), before)


def test_the_memory_lives_as_long_as_what_looks_at_it(pooled):
    expected = [tensor.clone() for tensor in pooled]
    views = [tensor.numpy() for tensor in pooled]
    holders = [torch.empty(0).set_(tensor) for tensor in pooled]
    for tensor in pooled:
        tensor.set_(torch.zeros(3))
    for view, holder, reference in zip(views, holders, expected):
        assert np.array_equal(view, reference.numpy())
        assert torch.equal(holder, reference)
