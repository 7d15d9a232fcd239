"""The bits of a result do not depend on the number of threads: forward, gradients and the router's losses.

A router's noise is left out: its spread is a product of PyTorch's own, which promises less.
"""

from dataclasses import replace

import pytest
import torch

import kernels
from kernels import LowRankExperts
from kernels.encoder.residual import residual_norm
from tests.kernels.cases import Case, run

CASES = [
    Case(top_k=1, experts=5, router="sigmoid"),
    Case(top_k=2, experts=7, activation="swiglu", masked=True),
    Case(top_k=3, experts=8, crowded=True, bias=False),
    Case(top_k="all", experts=3, activation="gelu_tanh"),
    Case(layer="SBMoE", top_k=1, experts=6, gate="mlp"),
]


@pytest.fixture
def with_threads():
    """with_threads(count, function): its result with so many threads, on the backend that has any"""
    if "native" not in kernels.available_backends():
        pytest.skip("the native backend is not available here")
    before = torch.get_num_threads()

    def call(count, function):
        torch.set_num_threads(count)
        with kernels.use_backend("native"):
            return function()

    yield call
    torch.set_num_threads(before)


def check(results):
    assert all(torch.equal(one, several) for one, several in zip(*results))


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layers(case, dtype, threads, with_threads):
    """Enough work for each thread to get some, and sizes that no tile divides."""
    case = replace(case, tokens=1100, hidden=100, ffn=132)
    layer = case.build("cpu", dtype)
    inputs = case.inputs("cpu", dtype)

    def step():
        torch.manual_seed(1)
        y, aux, grads, routing = run(layer, *inputs)
        with torch.no_grad():
            torch.manual_seed(1)
            alone = layer(inputs[0], inputs[2])
        return [y, aux, alone, routing.weights_TK, *(grad.clone() for grad in grads.values())]

    check([with_threads(1, step), with_threads(threads, step)])


@pytest.mark.parametrize("threads", [2, 3])
def test_attention_and_norms(threads, with_threads):
    torch.manual_seed(0)
    lengths = torch.tensor([0, 70, 3, 129, 1, 40])
    cu_seqlens = lengths.cumsum(0).int()
    tokens, heads, size = int(cu_seqlens[-1]), 4, 24
    q, k, v = torch.randn(3, tokens, heads, size).unbind()
    weight, bias = torch.randn(2, heads * size).unbind()
    leaves = [t.clone().requires_grad_() for t in (q, k, v, weight, bias)]

    def step():
        torch.manual_seed(1)
        out = kernels.packed_attention(*leaves[:3], cu_seqlens, int(lengths.max()), dropout=0.1)
        y = residual_norm(leaves[0].flatten(1), out.flatten(1), *leaves[3:], 1e-5, dropout=0.1)
        return [out, y, *torch.autograd.grad(y.square().sum(), leaves)]

    check([with_threads(1, step), with_threads(threads, step)])


@pytest.mark.parametrize("threads", [2, 3])
def test_generated_experts(threads, with_threads):
    torch.manual_seed(0)
    hidden, rank, cu_passages = 100, 20, torch.tensor([0, 3, 8, 8, 10], dtype=torch.int32)
    shapes = (rank, hidden), (hidden, rank), (rank, hidden), (rank, hidden)
    deltas = [torch.randn(10, *shape, requires_grad=True) for shape in shapes]
    base = [torch.randn(shape, requires_grad=True) for shape in shapes]
    x, scores = torch.randn(4, 110, hidden, requires_grad=True), torch.randn(10, requires_grad=True)

    def step():
        y = kernels.generated_experts(x, LowRankExperts(*deltas), scores, LowRankExperts(*base), cu_passages, 5)
        return [y, *torch.autograd.grad(y.square().sum(), [x, scores, *deltas, *base])]

    check([with_threads(1, step), with_threads(threads, step)])
