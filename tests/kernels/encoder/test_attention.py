"""packed_attention against PyTorch's attention on each sequence alone, and its dropout against its definition."""

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import dispatch, reference
from kernels.dropout import Dropout, dropout_hash
from kernels.records import Sequences
from tests.kernels.oracle import TOLERANCE, relative_error

LENGTHS = [[5], [1], [3, 1, 8], [0, 4, 0, 7, 0], [64, 33, 1, 17], [], [0, 0]]


def packed(lengths, heads, size, device, dtype):
    torch.manual_seed(0)
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths, dtype=torch.int32).cumsum(0).tolist()], dtype=torch.int32)
    qkv = torch.randn(3, sum(lengths), heads, size).to(device, dtype)
    return [t.clone().requires_grad_() for t in qkv], cu_seqlens.to(device), max([*lengths, 1])


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("heads,size", [(2, 8), (3, 26), (1, 32)])
def test_against_each_sequence_alone(lengths, heads, size, backend, dtype, device):
    qkv, cu_seqlens, max_len = packed(lengths, heads, size, device, dtype)
    out = kernels.packed_attention(*qkv, cu_seqlens, max_len)
    grad = torch.randn(out.shape).to(device, dtype)
    out.backward(grad)
    wide = [t.detach().double().cpu().requires_grad_() for t in qkv]
    parts = []
    for start, stop in zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:]):
        q, k, v = (t[start:stop].transpose(0, 1)[None] for t in wide)
        parts.append(F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1))
    expected = torch.cat(parts) if parts else sum(wide)
    expected.backward(grad.double().cpu())
    assert out.dtype == dtype
    for got, ref in [(out, expected), *((a.grad, b.grad) for a, b in zip(qkv, wide))]:
        if sum(lengths) > len(lengths) or ref.norm() > 1e-9:  # one token alone: q and k have no gradient
            assert relative_error(got, ref) < TOLERANCE[dtype]
        else:
            assert got.norm() < 1e-4


@pytest.mark.parametrize("layout", ["one projection", "heads first"])
def test_tensors_with_gaps(layout, backend, dtype, device):
    """Pieces of one projection, or transposed ones, give the bits of dense ones."""
    (q, k, v), cu_seqlens, max_len = packed([9, 0, 30], 2, 8, device, dtype)
    whole = (torch.stack([q, k, v], 1) if layout == "one projection" else torch.stack([q, k, v])).detach()
    if layout == "one projection":
        sparse = whole.requires_grad_().unbind(1)
    else:
        sparse = whole.transpose(1, 2).contiguous().requires_grad_().transpose(1, 2).unbind(0)
    assert not sparse[0].is_contiguous()
    out, expected = (kernels.packed_attention(*three, cu_seqlens, max_len) for three in (sparse, (q, k, v)))
    assert torch.equal(out, expected)
    grad = torch.randn(out.shape).to(device, dtype)
    grads = (torch.autograd.grad(y, three, grad) for y, three in ((out, sparse), (expected, (q, k, v))))
    for got, ref in zip(*grads):
        assert torch.equal(got, ref)


def test_gradcheck():
    qkv, cu_seqlens, max_len = packed([4, 0, 5], 2, 3, "cpu", torch.float64)

    def run(q, k, v):
        torch.manual_seed(2)
        return kernels.packed_attention(q, k, v, cu_seqlens, max_len, dropout=0.3)

    assert torch.autograd.gradcheck(run, tuple(qkv))


def test_dropout_is_its_definition_on_every_backend(backend, device):
    """v = one-hot rows show the probabilities themselves: each is 0 or p / (1 - rate), as the hash says."""
    lengths, rate, seed = [40, 24], 0.25, torch.tensor(12345, device=device)
    (q, k, _), cu_seqlens, max_len = packed(lengths, 2, 40, device, torch.float32)
    q, k = q.detach(), k.detach()
    v = torch.cat([torch.eye(40)[:n] for n in lengths])[:, None].repeat(1, 2, 1).to(device)
    module = dispatch.get(backend)
    sequences = Sequences(cu_seqlens, max_len)
    plain, _ = module.attention(q, k, v, sequences, Dropout(0.0, seed))
    dropped, _ = module.attention(q, k, v, sequences, Dropout(rate, seed))
    token, head, column = torch.meshgrid(*(torch.arange(n, device=device) for n in (64, 2, 40)), indexing="ij")
    keep = dropout_hash(seed, token * 2 + head, column) >= int(rate * 2**32)
    assert relative_error(dropped, plain * keep / (1 - rate)) < 1e-5
    assert abs(keep.float().mean().item() - (1 - rate)) < 0.02
    for neighbours in (keep[:-1] & keep[1:], keep[..., :-1] & keep[..., 1:], keep[:, 0] & keep[:, 1]):
        assert abs(neighbours.float().mean().item() - (1 - rate) ** 2) < 0.03, "neighbours are not independent"


def test_dropout_draws_anew_and_repeats_with_the_seed(backend, device):
    qkv, cu_seqlens, max_len = packed([9, 5], 2, 8, device, torch.float32)

    def run():
        return kernels.packed_attention(*qkv, cu_seqlens, max_len, dropout=0.5)

    torch.manual_seed(1)
    first, second = run(), run()
    torch.manual_seed(1)
    assert torch.equal(run(), first)
    assert not torch.equal(second, first)


def test_chunks_of_sequences_change_nothing(monkeypatch, device):
    qkv, cu_seqlens, max_len = packed([9, 5, 30, 2], 2, 8, device, torch.float32)
    whole = kernels.packed_attention(*qkv, cu_seqlens, max_len)
    made = []

    def one_by_one(like, sequences):
        for i in range(len(sequences.cu_seqlens) - 1):
            made.append(i)
            yield reference._Group(like, sequences, i, i + 1)

    monkeypatch.setattr(reference, "_groups", one_by_one)
    with kernels.use_backend("eager"):
        assert relative_error(kernels.packed_attention(*qkv, cu_seqlens, max_len), whole) < 1e-6
    assert made == [0, 1, 2, 3]


BAD_STARTS = [
    ([0, 4000], "cu_seqlens must go from 0 to 5, got 0 to 4000"),
    ([0, 4], "cu_seqlens must go from 0 to 5, got 0 to 4"),
    ([0], "cu_seqlens must go from 0 to 5, got 0 to 0"),
    ([1, 5], "cu_seqlens must go from 0 to 5, got 1 to 5"),
    ([-2, 5], "cu_seqlens must go from 0 to 5, got -2 to 5"),
    ([0, -3, 5], "cu_seqlens must not decrease, got -3 after 0"),
    ([0, 4, 2, 5], "cu_seqlens must not decrease, got 2 after 4"),
    ([0, 4000, 5], "cu_seqlens must not decrease, got 5 after 4000"),
    ([0, 1, 5], "cu_seqlens has a sequence of 4 tokens, max_len is 3"),
    ([], r"cu_seqlens must be a 1-d int tensor .*of shape \(0,\)"),
    ([[0, 5]], r"cu_seqlens must be a 1-d int tensor .*of shape \(1, 2\)"),
]


@pytest.mark.parametrize("kind", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("starts,message", BAD_STARTS, ids=str)
def test_sequences_that_do_not_fit_the_tokens(starts, message, kind, backend):
    """On a CPU, where the starts lie: they are looked at before any backend reads with them."""
    qkv = torch.randn(3, 5, 2, 4).unbind()
    for requires_grad in (False, True):
        given = [t.clone().requires_grad_(requires_grad) for t in qkv]
        with pytest.raises(ValueError, match=message):
            kernels.packed_attention(*given, torch.tensor(starts, dtype=kind), 3)


def test_starts_and_lengths_of_another_kind(backend):
    q, good = torch.randn(5, 2, 4), torch.tensor([0, 5])
    with pytest.raises(ValueError, match="must go from 0 to 5, got 0 to 2147483647"):  # and not 5, as int32 has it
        kernels.packed_attention(q, q, q, torch.tensor([0, 2**32 + 5]), 5)
    with pytest.raises(TypeError, match="cu_seqlens must be a tensor, got list"):
        kernels.packed_attention(q, q, q, [0, 5], 5)
    with pytest.raises(ValueError, match="max_len must be at least 0, got -1"):
        kernels.packed_attention(q, q, q, good, -1)
    with pytest.raises(ValueError, match=r"the size at least 1, got shape \(5, 2, 0\)"):
        kernels.packed_attention(*[q[:, :, :0]] * 3, good, 5)
    assert kernels.packed_attention(*[q[:, :0]] * 3, good, 5).shape == (5, 0, 4)


def test_a_compiled_graph_looks_at_the_starts(backend):
    q = torch.randn(5, 2, 4)
    compiled = torch.compile(kernels.packed_attention, fullgraph=True, backend="aot_eager")
    compiled(q, q, q, torch.tensor([0, 2, 5], dtype=torch.int32), 3)
    with pytest.raises(ValueError, match="must go from 0 to 5, got 0 to 9"):
        compiled(q, q, q, torch.tensor([0, 2, 9], dtype=torch.int32), 3)
