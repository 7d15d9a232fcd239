import pytest
import torch

pytest.importorskip("kernels.gpu.backend", exc_type=ImportError)

from kernels import reference
from kernels.dropout import Dropout
from kernels.gpu import attention, backend
from kernels.records import Sequences
from tests.kernels.gpu.compare import DEVICE, DTYPES, TOLERANCE, agree, normal

NO_DROPOUT = Dropout(0.0, torch.tensor(0, device=DEVICE))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [5, 26])
@pytest.mark.parametrize("lengths", [[2], [3, 0, 40, 33]], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_attention(lengths, size, dropout, dtype):
    """The same mask on both sides: a single probability dropped elsewhere would be an error of some percent."""
    num_tokens, num_heads = sum(lengths), 2
    starts = torch.tensor([0, *lengths]).cumsum(0).int().to(DEVICE)
    q, k, v, grad = (normal(num_tokens, num_heads, size, dtype=dtype) for _ in range(4))
    settings = Sequences(starts, max(lengths)), Dropout(dropout, torch.randint(2**31, (), device=DEVICE))
    out, lse = agree("attention", q, k, v, *settings, tolerance=2 * TOLERANCE[dtype])
    agree("attention_backward", grad, q, k, v, out, lse, *settings, tolerance=2 * TOLERANCE[dtype])


def test_the_dropout_hash_is_bit_equal():
    """Values of one, keys of zero: out is the share that was kept, which no rounding can blur."""
    length, size = 97, 16
    zeros, starts = torch.zeros(length, 1, size, device=DEVICE), torch.tensor([0, length], dtype=torch.int32)
    values = torch.eye(length, size, device=DEVICE)[:, None] + 1
    seed = torch.tensor(2**31 - 5, device=DEVICE)
    settings = Sequences(starts.to(DEVICE), length), Dropout(0.4, seed)
    ours, _ = backend.attention(zeros, zeros, values, *settings)
    twin, _ = reference.attention(zeros, zeros, values, *settings)
    assert torch.equal((ours * length * 0.6).round(), (twin * length * 0.6).round())


@pytest.mark.parametrize("starts", [[0], [0, 0, 0]])
def test_no_token(starts):
    q = normal(0, 2, 8)
    settings = Sequences(torch.tensor(starts, dtype=torch.int32, device=DEVICE), 0), NO_DROPOUT
    out, lse = backend.attention(q, q, q, *settings)
    assert out.shape == q.shape
    assert all(g.shape == q.shape for g in backend.attention_backward(q, q, q, q, out, lse, *settings))


@pytest.mark.parametrize(
    "dtype,size,dropout,taken",
    [
        (torch.float16, 64, 0.0, True),
        (torch.bfloat16, 32, 0.0, True),
        (torch.float32, 64, 0.0, False),
        (torch.float16, 26, 0.0, False),
        (torch.float16, 64, 0.1, False),
    ],
)
def test_where_torch_runs_it(dtype, size, dropout, taken, monkeypatch):
    """Its log-sum-exp is [heads, tokens]: ours is the other way round."""
    calls = []

    def varlen(q, k, v, starts_q, starts_k, max_q, max_k, return_aux):
        calls.append((max_q, return_aux.lse))
        return q, q.new_zeros(q.shape[1], q.shape[0], dtype=torch.float32)

    class OnGpu(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
    monkeypatch.setattr(attention, "launch", lambda *arguments, **constants: None)
    q = torch.empty(6, 2, size, dtype=dtype).as_subclass(OnGpu)
    starts = torch.tensor([0, 2, 6], dtype=torch.int32)
    _, lse = attention.attention(q, q, q, Sequences(starts, 4), Dropout(dropout, torch.tensor(0)))
    assert calls == [(4, True)] * taken
    assert lse.shape == (6, 2)


def test_a_head_that_no_kernel_has_registers_for():
    q = normal(5, 1, 200)
    settings = Sequences(torch.tensor([0, 5], dtype=torch.int32, device=DEVICE), 5), NO_DROPOUT
    out, lse = agree("attention", q, q, q, *settings, tolerance=1e-6)
    agree("attention_backward", q, q, q, q, out, lse, *settings, tolerance=1e-6)


def test_starts_outside_of_the_tokens_are_cut():
    """Nobody looks at them on a GPU: whatever they say, no program reads or writes beyond the tokens."""
    q, k, v, grad = (normal(5, 2, 8) for _ in range(4))
    results = []
    for bounds in ([-3, 4, 2**31 - 1], [0, 4, 5]):
        settings = Sequences(torch.tensor(bounds, dtype=torch.int32, device=DEVICE), 5), NO_DROPOUT
        out, lse = backend.attention(q, k, v, *settings)
        results.append([out, lse, *backend.attention_backward(grad, q, k, v, out, lse, *settings)])
    assert all(map(torch.equal, *results))
