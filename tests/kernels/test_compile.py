"""`torch.compile(fullgraph=True)`: the same numbers, one graph for any number of tokens, the backend picked late."""

from contextlib import nullcontext

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import kernels
from kernels import dispatch
from tests.kernels.cases import Case

pytestmark = pytest.mark.slow_in_the_interpreter

CASES = [
    Case(),
    Case(top_k=1, router="sigmoid", masked=True),
    Case(top_k="all", activation="swiglu"),
    Case(layer="SBMoE", top_k=1, gate="mlp", noise=True),
]


def step(run, layer, x, mask):
    layer.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(5)
    y = run(x, mask)
    aux = kernels.aux_loss(layer)
    (y.square().sum() + aux).backward()
    return [y, aux, x.grad, *(p.grad for p in layer.parameters())]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_eager_and_never_recompiles(case, backend, device):
    layer = case.build(device, torch.float32)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for tokens in (2, 3, 17, 64, 129, 1000 if backend != "triton" else 130, 2):
        x = torch.randn(tokens, case.hidden, device=device)
        mask = torch.rand(tokens, device=device) < 0.7 if case.masked else None
        expected, got = step(layer, layer, x, mask), step(compiled, layer, x, mask)
        assert all(torch.equal(a, b) for a, b in zip(expected, got))
    x.requires_grad_()
    compiled(x, mask)
    compiled(x, mask)  # two forwards before one aux_loss
    assert counter.frame_count == 1


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_autocast(case, inside, backend, device):
    """Around the compiled layer, or compiled with it: one graph and the same bits either way."""
    half = torch.bfloat16 if dispatch.get(backend).supports(device, torch.bfloat16) else torch.float16
    layer = case.build(device, torch.float32)

    def run(x, mask):
        with torch.autocast(device.type, dtype=half) if inside else nullcontext():
            return layer(x, mask)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=counter)
    for tokens in (5, 17):
        x = torch.randn(tokens, case.hidden, device=device)
        mask = torch.rand(tokens, device=device) < 0.7 if case.masked else None
        with torch.no_grad():  # whose sums do not count
            wide = layer(x, mask)
        with nullcontext() if inside else torch.autocast(device.type, dtype=half):
            expected, got = step(run, layer, x, mask), step(compiled, layer, x, mask)
        assert all(torch.equal(a, b) for a, b in zip(expected, got))
        if not case.noise:
            assert 0 < (got[0].float() - wide).norm() < 2e-2 * wide.norm()  # nothing was computed in fp32
    assert counter.frame_count == 1


@pytest.mark.parametrize("checkpointed,coefficient", [(False, 0.5), (True, 0.5), (True, 0.0)])
def test_a_whole_step_with_its_loss(checkpointed, coefficient, backend, device):
    """Two forwards of two layers and `aux_loss` in one graph, step after step; what is computed again counts once."""
    if backend == "triton" and device.type == "cpu":
        pytest.skip("a minute in the interpreter")
    layers = torch.nn.ModuleList(Case(top_k=k).build(device, torch.float32) for k in (1, 2))
    for layer in layers:
        layer.balance_coef = layer.z_coef = layer.importance_coef = coefficient

    def forward(x):
        for layer in layers:
            x = x + (checkpoint(layer, x, use_reentrant=False) if checkpointed else layer(x))
        return x

    def loss(queries, documents):
        return (forward(queries) * forward(documents)).square().mean() + kernels.aux_loss(layers)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            sides = torch.randn(2, 9, 12, device=device)
            results = []
            for run in (loss, compiled):
                layers.zero_grad()
                value = run(*sides)
                value.backward()
                counts = [layer.sums.take_counts() for layer in layers]
                results.append([value, *counts, *(p.grad for p in layers.parameters())])
            assert all(torch.equal(a, b) for a, b in zip(*results))
            assert [each.sum().item() for each in counts] == [2 * 9, 2 * 2 * 9]
    assert counter.frame_count == 1


def test_a_checkpoint_whose_loss_is_asked_for_outside(backend, device):
    layer = Case().build(device, torch.float32)

    def run(x, mask):
        return checkpoint(layer, x, mask, use_reentrant=False)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = torch.randn(9, 12, device=device)
        assert all(torch.equal(a, b) for a, b in zip(step(layer, layer, x, None), step(compiled, layer, x, None)))
        assert layer.sums.take_counts().sum() == 2 * 2 * 9


def test_inductor(device):
    layer = Case(masked=True).build(device, torch.float32)
    x, _, mask = Case(masked=True).inputs(device, torch.float32)
    model = torch.nn.Sequential(torch.nn.Linear(12, 12), torch.nn.LayerNorm(12)).to(device)

    def block(x, mask):
        return x + layer(model(x), mask)

    x = torch.randn_like(x)
    got = step(torch.compile(block, fullgraph=True), layer, x, mask)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(got, step(block, layer, x, mask)))


def test_without_gradients(backend, device):
    layer = Case().build(device, torch.float32)
    x = torch.randn(9, 12, device=device)
    with torch.no_grad():
        assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


def test_functional_api_and_attention(backend, device):
    layer = Case().build(device, torch.float32)
    experts = [p.detach() for p in layer.experts.parameters()]
    x = torch.randn(9, 12, device=device, requires_grad=True)
    cu_seqlens = torch.tensor([0, 4, 9], dtype=torch.int32, device=device)

    def run(x):
        y = kernels.moe(x, layer.router.weight, experts[0], experts[1], experts[2], experts[3], top_k=2)
        routing = kernels.route(y[:, :4], 2)
        y = kernels.expert_mlp(y, routing.indices_TK, routing.weights_TK, *experts)
        q, k, v = (y.view(9, 3, 2, 2) * 2).unbind(2)[0], y.view(9, 3, 4)[..., :2], y.view(9, 3, 4)[..., 2:]
        return kernels.packed_attention(q, k, v, cu_seqlens, 5, dropout=0.1)

    results = []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        x.grad = None
        torch.manual_seed(0)
        y = function(x)
        y.square().sum().backward()
        results.append((y, x.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_the_backend_can_change_under_a_compiled_graph(backend, device):
    layer = Case().build(device, torch.float32)
    x = torch.randn(9, 12, device=device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    own = compiled(x)
    with kernels.use_backend("eager"):
        eager = compiled(x)
        assert torch.equal(eager, layer(x))
    assert counter.frame_count == 1
    assert torch.allclose(own, eager, rtol=1e-4, atol=1e-5)
