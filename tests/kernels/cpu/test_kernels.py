"""What the common suite does not ask: every thread count, every instruction set, any address, exact edges."""

import math

import pytest
import torch

import kernels
from kernels import reference
from kernels.activations import activate
from kernels.cpu.levels import EMULATIONS, LEVELS
from kernels.dropout import Dropout
from kernels.encoder import FrozenEncoder, residual_norm
from kernels.records import ExpertWeights, Sequences
from kernels.routing import Plan
from moe_retrieval.models.encoder import Encoder, EncoderShape, pack
from tests.kernels.cases import Case, check, run

LENGTHS = [70, 1, 0, 33]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def results(dtype):
    """Everything that the backend computes, on shapes that several threads share."""
    found = []
    for case in (
        Case(tokens=301, hidden=72, ffn=130, experts=5, crowded=True, gate="mlp"),
        Case(tokens=650, hidden=40, ffn=36, experts=3, top_k=1, activation="swiglu", masked=True),
        Case(tokens=90, hidden=33, ffn=35, experts=4, top_k="all", router="sigmoid"),
        Case(tokens=3, hidden=48, ffn=700, experts=8, top_k=2),
    ):
        layer = case.build("cpu", dtype)
        x, grad_y, mask = case.inputs("cpu", dtype)
        y, aux, grads, routing = run(layer, x, grad_y, mask)
        with torch.no_grad():
            found += [y, aux, *grads.values(), *routing, layer.eval()(x, mask)]
    torch.manual_seed(0)
    qkv = [t.to(dtype).requires_grad_() for t in torch.randn(3, sum(LENGTHS), 3, 26)]
    starts = torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    out = kernels.packed_attention(*qkv, starts, max(LENGTHS), dropout=0.1)
    out.square().sum().backward()
    found += [out, *(t.grad for t in qkv)]
    for rows, hidden in ((301, 72), (5, 33), (0, 7)):
        x, y, weight, bias = (torch.randn(*n, hidden).requires_grad_() for n in ((rows,), (rows,), (), ()))
        out = residual_norm(x, y.to(dtype), weight, bias, 1e-12, dropout=0.1)
        out.square().sum().backward()
        found += [out, *(t.grad for t in (x, y, weight, bias))]
    return [t.detach() for t in found] + serving(dtype)


@torch.no_grad()
def serving(dtype):
    """A frozen encoder, dense and with experts, and what follows it: a few sequences, which threads share, and many,
    which they divide."""
    found = []
    for routed in ((), (1,)):
        torch.manual_seed(1)
        encoder = Encoder(EncoderShape(50, 26, 2, 2, 70, 90)).eval()
        for index in routed:
            encoder.blocks[index].ffn = kernels.MoE(26, 70, num_experts=4, top_k=2).eval()
        pooled = [kernels.SBMoE(26).eval(), kernels.SBMoE(26, top_k=2, gate="linear").eval()]
        for lengths in ([3], LENGTHS, [90, 5, 31] * 17):
            ids, starts, _ = pack([[i % 50 for i in range(length)] for length in lengths])
            for layer in pooled:
                frozen = FrozenEncoder(encoder.parts(), pooled=layer, normalize=True, dtype=dtype)
                hidden, embeddings = frozen.hidden_states(ids, starts), frozen.embed(ids, starts)
                assert torch.equal(frozen.pool(hidden, starts), embeddings)
                found += [hidden, embeddings]
    return found


@pytest.mark.parametrize("rows", [3, 2**20])
def test_memory_is_poisoned_where_torch_poisons_its_own(native, rows):
    """What the tests of this suite rest on, for small memory and for that of the pool, new and used."""
    for _ in range(2):
        made = torch.ops.moe_retrieval_cpu.empty([rows])
        assert made.isnan().all()
        made.fill_(1.0)
        del made
    torch.use_deterministic_algorithms(False)  # the fixture of the suite restores it
    assert rows < 10 or (torch.ops.moe_retrieval_cpu.empty([rows]) == 1.0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equal_bits_for_any_number_of_threads(native, threads, dtype):
    with kernels.use_backend("native"):
        threads(1)
        expected = results(dtype)
        for number in (2, 3, 7):
            threads(number)
            got = results(dtype)
            assert len(got) == len(expected) > 40
            assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(got, expected)), number


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("level", [*LEVELS, *EMULATIONS])
def test_every_compiled_instruction_set(native, level, dtype):
    """An installation has all of them; one compiled at first use is run with others by test_build.py."""
    ops = torch.ops.moe_retrieval_cpu
    if level not in ops.levels():
        pytest.skip(f"no {level} in this library, or not on this machine")
    ops.choose_level(level, level)
    try:
        with kernels.use_backend("native"):
            for case in (
                Case(tokens=70, hidden=33, ffn=35, experts=3),
                Case(tokens=600, hidden=17, ffn=50, experts=2, top_k=1, activation="geglu"),
                Case(tokens=5, hidden=129, ffn=131, gate="mlp", top_k="all"),
            ):
                check(case, "cpu", dtype)
    finally:
        ops.choose_level(*native.choice)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case(tokens=40, hidden=256, ffn=520, experts=16),
        Case(tokens=40, hidden=250, ffn=530, experts=16),
        Case(tokens=1100, hidden=33, ffn=35, experts=1, top_k=1),
    ],
    ids=["written past the caches", "the same, not aligned", "sums in several spans"],
)
def test_large_gradients(native, case, dtype):
    with kernels.use_backend("native"):
        check(case, "cpu", dtype)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu"])
def test_activations_to_a_millionth(native, activation):
    """One token, one weight of 1: `up` is the activation and `down_backward` its derivative."""
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-90.0, -30.0, -0.0, 1e-6, 30.0, 90.0])])[:, None]
    rows, one = len(x), torch.ones(1, 1, 1)
    experts = ExpertWeights(one, None, one, None)
    plan = Plan(torch.arange(rows, dtype=torch.int32), torch.tensor([0, rows], dtype=torch.int32))
    act, pre = native.up(x, plan, experts, 1, activation, True)
    slope, *_ = native.down_backward(torch.ones_like(x), pre, plan, torch.ones_like(x), experts, activation)
    wide = x.double().requires_grad_()
    expected = activate(wide, activation)
    (expected_slope,) = torch.autograd.grad(expected.sum(), wide)
    scale = wide.detach().abs().clamp(min=1.0)
    assert ((act - expected).abs() / scale).max() < 1e-6
    assert ((slope - expected_slope).abs() / scale).max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [3, 700])
def test_any_address_gives_the_same_bits(native, tokens, dtype):
    """Parameters and inputs that begin in the middle of a cache line, and inputs with gaps between their rows."""

    def shifted(tensor):
        memory = torch.full((tensor.numel() + 1,), math.nan, dtype=tensor.dtype)
        memory[1:] = tensor.flatten()
        return memory[1:].view(tensor.shape)

    torch.manual_seed(0)
    x, router = torch.randn(tokens, 31, dtype=dtype), torch.randn(4, 31)
    experts = [torch.randn(shape, dtype=dtype) for shape in [(4, 29, 31), (4, 29), (4, 31, 29), (4, 31)]]
    gaps = torch.full((tokens, 40), math.nan, dtype=dtype)
    gaps[:, 5:36] = x
    with kernels.use_backend("native"):
        expected = kernels.moe(x, router, *experts, top_k=2)
        assert torch.equal(kernels.moe(shifted(x), router, *map(shifted, experts), top_k=2), expected)
        assert torch.equal(kernels.moe(gaps[:, 5:36], router, *experts, top_k=2), expected)


def test_a_mask_with_gaps(native):
    torch.manual_seed(0)
    layer, x = kernels.MoE(16, 24, num_experts=3, top_k=2), torch.randn(50, 16)
    mask = torch.rand(50, 3) < 0.5
    with kernels.use_backend("native"):
        assert torch.equal(layer(x, mask[:, 1]), layer(x, mask[:, 1].clone()))
        assert torch.equal(layer(x, mask[:, 1])[~mask[:, 1]], torch.zeros(int((~mask[:, 1]).sum()), 16))


def test_weights_may_change_in_any_way(native):
    """Nothing is kept of a weight from one call to the next, so nothing can be out of date."""
    layer = kernels.MoE(64, 96, num_experts=3, top_k=2).eval()
    x = torch.randn(700, 64)
    with kernels.use_backend("native"), torch.no_grad():
        before = layer(x)
        layer.experts.down_weight.data[1, 5, 7] += 100.0  # unseen by a version counter
        changed = layer(x)
        layer.experts.down_weight.data = layer.experts.down_weight.data.clone().mul_(2)
        swapped = layer(x)
        with kernels.use_backend("eager"):
            expected = layer(x)
    assert not torch.equal(before[:, 5], changed[:, 5])
    assert torch.equal(before[:, :5], changed[:, :5])
    torch.testing.assert_close(swapped, expected, rtol=1e-4, atol=1e-4)


def test_a_name_that_is_not_known(native):
    ops, logits = torch.ops.moe_retrieval_cpu, torch.randn(3, 4)
    with pytest.raises(RuntimeError, match="router must be one of softmax, topk_softmax, sigmoid; got 'hash'"):
        ops.choose(logits, None, None, 2, "hash", True)
    order, offsets = torch.arange(3, dtype=torch.int32), torch.tensor([0, 3], dtype=torch.int32)
    known = "gelu, gelu_tanh, relu, silu, swiglu, geglu"
    with pytest.raises(RuntimeError, match=f"activation must be one of {known}; got 'tanh'"):
        ops.up(logits, order, offsets, torch.randn(1, 6, 4), None, 1, "tanh", False)


def test_the_plan_is_exactly_the_reference(native):
    torch.manual_seed(0)
    for tokens, top_k, experts in [(0, 2, 3), (1, 1, 1), (257, 4, 9), (1000, 2, 300)]:
        indices = torch.randint(-2, experts + 2, (tokens, top_k), dtype=torch.int32)
        for got, expected in zip(native.plan(indices, experts), reference.plan(indices, experts)):
            assert torch.equal(got, expected)


def test_a_query_longer_than_a_span_of_keys(native):
    """The sums of the softmax are rescaled when a later span of keys has a larger score."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1100, 2, 26)
    k[900:] *= 3
    starts = torch.tensor([0, 1100], dtype=torch.int32)
    seed = torch.tensor(3)
    for dropout in (0.0, 0.3):
        how = Sequences(starts, 1100), Dropout(dropout, seed)
        for a, b in zip(native.attention(q, k, v, *how), reference.attention(q, k, v, *how)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_freed_memory_is_used_for_the_next_tensor_of_its_size():
    """A training step then asks the system for nothing; and what is kept never holds what was asked for by another."""
    layer = kernels.MoE(64, 4096, num_experts=8, top_k=2)
    x = torch.randn(16, 64)

    def step():
        layer.zero_grad()
        layer(x).square().sum().backward()
        return layer.experts.up_weight.grad

    first = step()  # 8 MB
    assert first.nbytes >= 2**21
    address, kept = first.data_ptr(), first.clone()
    second = step()  # while the first lives
    assert second.data_ptr() != address
    assert torch.equal(first, kept)
    del first, second
    addresses = {step().data_ptr() for _ in range(6)}
    assert len(addresses) <= 3
