"""The functional API, the ops behind it, their gradients in fp64, and what they keep for the backward."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

import kernels
from bench.cases.memory import saved_bytes
from bench.contenders.ffn import FFN
from bench.contenders.gate import Gate
from bench.contenders.loop import ExpertLoop
from kernels import dispatch
from tests.kernels.cases import Case
from tests.kernels.oracle import relative_error


def parameters(E=4, F=6, H=5, gated=False, dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    width = 2 * F if gated else F
    shapes = [(E, width, H), (E, width), (E, H, F), (E, H)]
    tensors = [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]
    if not bias:
        tensors[1] = tensors[3] = None
    return tensors


@pytest.mark.parametrize("router,renormalize", [("softmax", False), ("softmax", True), ("sigmoid", True)])
@pytest.mark.parametrize("top_k", [1, 2, "all"])
@pytest.mark.parametrize("layer_type,gate,noise", [("MoE", "linear", False), ("SBMoE", "mlp", True)])
def test_gradcheck_of_layers(router, renormalize, top_k, layer_type, gate, noise):
    """Output and losses, with respect to x and to every parameter, noise included."""
    case = Case(layer_type, 7, 6, 5, 4, top_k, "gelu", router, renormalize, gate, noise)
    layer = case.build("cpu", torch.float64)
    names = [name for name, _ in layer.named_parameters()]
    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([1, 1, 0, 1, 1, 1, 0])

    def run(x, *values):
        torch.manual_seed(1)
        return torch.func.functional_call(layer, dict(zip(names, values)), (x, mask)), kernels.aux_loss(layer)

    assert gradcheck(run, (x, *layer.parameters()))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu", "swiglu", "geglu"])
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck_of_expert_mlp(activation, bias):
    up, up_bias, down, down_bias = parameters(gated=activation in ("swiglu", "geglu"), bias=bias)
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    indices = torch.tensor([[0, 1], [1, 3], [-1, 0], [3, 1], [-1, -1], [0, 99]])
    weights = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)

    def run(x, weights, *rest):
        if bias:
            return kernels.expert_mlp(x, indices, weights, *rest, activation=activation)
        return kernels.expert_mlp(x, indices, weights, rest[0], None, rest[1], None, activation=activation)

    given = [tensor for tensor in (up, up_bias, down, down_bias) if tensor is not None]
    assert gradcheck(run, (x, weights, *given))


@pytest.mark.parametrize("router,renormalize", [("softmax", False), ("topk_softmax", True), ("sigmoid", True)])
@pytest.mark.parametrize("top_k", [1, 3, "all"])
def test_gradcheck_of_route(router, renormalize, top_k):
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, True, False, True, True])

    def run(logits):
        return kernels.route(logits, top_k, router=router, renormalize=renormalize, mask=mask).weights_TK

    assert gradcheck(run, (logits,))


def test_route_then_expert_mlp_is_moe(backend, device):
    experts = [p.detach().float().to(device) for p in parameters()]
    router_weight = torch.randn(4, 5, device=device)
    x = torch.randn(2, 9, 5, device=device)
    mask = torch.rand(2, 9, device=device) < 0.7
    for router in ("softmax", "topk_softmax", "sigmoid"):
        y = kernels.moe(x, router_weight, *experts, top_k=2, router=router, mask=mask)
        logits = (x @ router_weight.T).reshape(-1, 4)
        routing = kernels.route(logits, 2, router=router, mask=mask.flatten())
        assert routing.indices_TK.dtype == torch.int32
        slots = (routing.indices_TK.view(2, 9, 2), routing.weights_TK.view(2, 9, 2))
        assert relative_error(kernels.expert_mlp(x, *slots, *experts), y) < 1e-6


def test_ties_go_to_the_lower_index(backend, device):
    logits = torch.zeros(3, 70, device=device)
    logits[1, 7] = logits[1, 60] = 1.0
    logits[2] = float("nan")
    routing = kernels.route(logits, 3)
    assert routing.indices_TK.tolist() == [[0, 1, 2], [7, 60, 0], [0, 1, 2]]
    assert routing.weights_TK[2].isnan().all()


def test_unused_slots_are_never_read(backend, device):
    experts = [p.detach().float().to(device) for p in parameters()]
    x = torch.randn(4, 5, device=device)
    indices = torch.tensor([[0, 2], [1, -1], [-1, 3], [-1, -1]], device=device)
    weights = torch.rand(4, 2, device=device)
    x[3] = float("nan")
    y = kernels.expert_mlp(x, indices, weights, *experts)
    assert torch.equal(y[3], torch.zeros(5, device=device))
    single = kernels.expert_mlp(
        x[1:3], torch.tensor([[1], [3]], device=device), weights[[1, 2], [0, 1]][:, None], *experts
    )
    assert relative_error(y[1:3], single) < 1e-6


OUTSIDE = {
    torch.int8: [-1, -128, 4, 127],
    torch.uint8: [4, 255],
    torch.int16: [-1, -(2**15), 2**15 - 1],
    torch.int32: [-1, -(2**31), 4, 2**31 - 1],
    torch.int64: [-1, 4, 2**31, -(2**31) - 1, 2**32, 2**32 + 1, 1 - 2**32, 2**63 - 1, -(2**63)],
    torch.uint16: [4, 2**16 - 1],
    torch.uint32: [2**31, 2**32 - 1],
    torch.uint64: [2**32 + 1, 2**63, 2**64 - 1],
}
"""Of 4 experts; int32 would make experts of some."""


@pytest.mark.parametrize("kind", OUTSIDE, ids=str)
def test_indices_of_any_type_outside_of_the_experts_are_unused(kind, backend, device):
    experts = [p.detach().float().to(device) for p in parameters()]
    x = torch.randn(len(OUTSIDE[kind]), 5, device=device)
    indices = torch.tensor([[outside, 1] for outside in OUTSIDE[kind]], dtype=kind, device=device)
    weights = torch.ones(len(x), 2, device=device)
    y = kernels.expert_mlp(x, indices, weights, *experts)
    alone = kernels.expert_mlp(x, torch.ones(len(x), 1, dtype=torch.int32, device=device), weights[:, :1], *experts)
    assert relative_error(y, alone) < 1e-6


def test_saved_bytes_at_most_half_of_a_loop_over_experts(backend, device):
    tokens, hidden, ffn = (4096, 384, 1536) if backend != "triton" or device.type == "cuda" else (128, 96, 384)
    torch.manual_seed(0)
    x = torch.randn(tokens, hidden, device=device, requires_grad=True)
    ours = kernels.MoE(hidden, ffn, num_experts=8, top_k=2).to(device)
    loop = ExpertLoop(Gate(hidden, 8, 2), [FFN(hidden, ffn) for _ in range(8)]).to(device)
    ratio = saved_bytes(lambda: ours(x), ours.parameters()) / saved_bytes(lambda: loop(x), loop.parameters())
    assert 0.2 < ratio <= 0.5


def test_an_op_sees_no_autocast(backend, device):
    """Inside, products of fp32 tensors stay fp32 even where autocast would make them half."""
    logits = torch.randn(64, 8, device=device)
    layer = kernels.MoE(8, 8, num_experts=8, top_k=8).to(device)
    half = torch.bfloat16 if dispatch.get(backend).supports(device, torch.bfloat16) else torch.float16
    with torch.autocast(device.type, dtype=half), kernels.record_routing(layer) as log:
        layer(logits)
    assert relative_error(log[""][0].logits_TE, F.linear(logits, layer.router.weight)) < 1e-6
