import pytest
import torch

from moe_retrieval.models.pooling import POOLINGS, pool, pooled_size

LENGTHS = (3, 1, 0, 5)


def make():
    torch.manual_seed(0)
    hidden = torch.randn(sum(LENGTHS), 7, dtype=torch.float64) - 2  # below zero: a maximum must not become 0
    cu_seqlens = torch.tensor([0, 3, 4, 4, 9], dtype=torch.int32)
    return hidden.requires_grad_(), cu_seqlens


def expected(hidden, pooling):
    rows = []
    for part in hidden.split(LENGTHS):
        if not len(part):
            rows.append(torch.zeros(pooled_size(7, pooling), dtype=hidden.dtype))
            continue
        by = {"mean": part.sum(0) / len(part), "cls": part[0], "max": part.amax(0)}
        rows.append(torch.cat([by[kind] for kind in pooling.split("-")]))
    return torch.stack(rows)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_equals_a_loop_with_its_gradient(pooling):
    hidden, cu_seqlens = make()
    out = pool(hidden, cu_seqlens, pooling)
    torch.testing.assert_close(out, expected(hidden, pooling), rtol=1e-14, atol=1e-14)
    probe = torch.randn_like(out)
    (grad,) = torch.autograd.grad((out * probe).sum(), hidden)
    (reference,) = torch.autograd.grad((expected(hidden, pooling) * probe).sum(), hidden)
    torch.testing.assert_close(grad, reference, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_nothing_to_pool_keeps_the_graph(pooling):
    hidden = torch.zeros(0, 7, requires_grad=True)
    out = pool(hidden, torch.zeros(1, dtype=torch.int32), pooling)
    assert out.shape == (0, pooled_size(7, pooling))
    out.sum().backward()
    assert hidden.grad is not None


def test_half_precision_is_summed_wide():
    hidden = torch.full((3000, 1), 1.001).bfloat16()
    assert pool(hidden, torch.tensor([0, 3000]), "mean").dtype == torch.float32
    assert pool(hidden, torch.tensor([0, 3000]), "mean").item() == hidden[0].float().item()


def test_an_unknown_pooling_is_named():
    with pytest.raises(ValueError, match="pooling must be one of mean, cls, max, mean-max; got 'last'"):
        pool(*make(), "last")
