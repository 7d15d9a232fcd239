"""The grouped kernels, routed and for all experts."""

import pytest
import torch

pytest.importorskip("kernels.gpu.backend", exc_type=ImportError)

from kernels import reference
from kernels.activations import ACTIVATIONS, GATED
from kernels.gpu import backend, heuristics, launch
from kernels.records import ExpertWeights
from tests.kernels.gpu.compare import DEVICE, DTYPES, TOLERANCE, agree, leaves, normal, same

HIDDEN, FFN = 24, 20


def slots(num_tokens, num_experts, top_k, unused):
    """Distinct experts for each token; a few slots unused, and expert 1 without any if there are more than two."""
    indices = torch.stack([torch.randperm(num_experts)[:top_k] for _ in range(num_tokens)]).int()
    indices[torch.rand(num_tokens, top_k) < unused] = -1
    if num_experts > 2:
        indices[indices == 1] = num_experts + 5  # outside 0..E-1: unused as well
    return indices.to(DEVICE)


def parameters(num_experts, activation, dtype, bias=True):
    width = 2 * FFN if activation in GATED else FFN
    up_weight = normal(num_experts, width, HIDDEN, dtype=dtype) / HIDDEN**0.5
    down_weight = normal(num_experts, HIDDEN, FFN, dtype=dtype) / FFN**0.5
    if not bias:
        return ExpertWeights(up_weight, None, down_weight, None)
    up_bias, down_bias = normal(num_experts, width, dtype=dtype), normal(num_experts, HIDDEN, dtype=dtype)
    return ExpertWeights(up_weight, up_bias, down_weight, down_bias)


CASES = [  # tokens, experts, top_k, unused, activation, bias
    (1, 1, 1, 0.0, "gelu", True),
    (1, 4, 2, 0.0, "relu", True),
    (2, 3, 3, 1.0, "silu", True),
    (37, 6, 6, 0.1, "gelu_tanh", True),
    (37, 6, 2, 0.3, "swiglu", False),
    (70, 2, 1, 0.1, "geglu", True),
    (200, 5, 2, 0.2, "gelu", True),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens,num_experts,top_k,unused,activation,bias", CASES)
def test_routed(num_tokens, num_experts, top_k, unused, activation, bias, dtype):
    indices = slots(num_tokens, num_experts, top_k, unused)
    experts = parameters(num_experts, activation, dtype, bias)
    x, grad_y = normal(num_tokens, HIDDEN, dtype=dtype), normal(num_tokens, HIDDEN, dtype=dtype)
    weights = torch.rand(num_tokens, top_k).to(DEVICE)
    near = TOLERANCE[dtype]

    plan = agree("plan", indices, num_experts, tolerance=0)
    agree("up", x, plan, experts, top_k, activation, False, tolerance=near)
    act, pre = agree("up", x, plan, experts, top_k, activation, True, tolerance=near)
    down = (act, plan, weights, experts)
    rows = agree("down", *down, None, dtype, tolerance=near)
    if top_k == 1:
        agree("down", *down, x.float(), torch.float32, tolerance=near)
    mask = indices[:, 0] >= 0
    agree("combine", rows, top_k, torch.where(mask[:, None], x, torch.nan), mask, torch.float32, tolerance=near)
    agree("combine", rows, top_k, None, None, dtype, tolerance=near)
    backward = (grad_y, pre, plan, weights, experts, activation)
    grad_pre, weighted_act, _ = agree("down_backward", *backward, tolerance=near, reduce=2)
    agree("down_weight_grad", grad_y, weighted_act, plan, weights, bias, tolerance=near)
    agree("up_weight_grad", x, grad_pre, plan, top_k, bias, tolerance=near)
    agree("up_backward", grad_pre, plan, experts, tolerance=near)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens,num_experts", [(1, 1), (37, 5), (70, 2)])
@pytest.mark.parametrize("activation", ["gelu", "geglu"])
def test_all_experts(num_tokens, num_experts, activation, dtype):
    experts = parameters(num_experts, activation, dtype)
    x, grad_y = normal(num_tokens, HIDDEN, dtype=dtype), normal(num_tokens, HIDDEN, dtype=dtype)
    weights = torch.rand(num_tokens, num_experts).to(DEVICE)
    near = TOLERANCE[dtype]

    agree("all_up", x, weights, experts._replace(up_bias_EU=None), activation, False, tolerance=near)
    act, pre = agree("all_up", x, weights, experts, activation, True, tolerance=near)
    agree("all_down", act, weights, experts, x, dtype, tolerance=near)
    agree("all_down", act, weights, experts._replace(down_bias_EH=None), None, torch.float32, tolerance=near)
    backward = (grad_y, pre, weights, experts, activation)
    grad_pre, weighted_act, _ = agree("all_down_backward", *backward, tolerance=near, reduce=2)
    agree("all_down_weight_grad", grad_y, weighted_act, weights, True, tolerance=near)
    agree("all_up_weight_grad", x, grad_pre, True, tolerance=near)
    agree("all_up_backward", grad_pre, experts, tolerance=near)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, *GATED])
def test_activations_over_their_whole_range(activation):
    """Not only where a normal distribution has its mass; NaN stays NaN, and only NaN."""
    pre = torch.cat([torch.linspace(-12, 12, 997), torch.tensor([0.0, torch.nan])]).to(DEVICE)
    width = 2 if activation in GATED else 1
    experts = ExpertWeights(torch.ones(1, width, 1, device=DEVICE), None, torch.ones(1, 1, 1, device=DEVICE), None)
    x, weights = pre[:, None], torch.ones(len(pre), 1, device=DEVICE)
    act, saved = backend.all_up(x, weights, experts, activation, True)
    expected, _ = reference.all_up(x, weights, experts, activation, True)
    torch.testing.assert_close(act, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    grad, _, _ = backend.all_down_backward(x.nan_to_num(1), saved, weights, experts, activation)
    expected, _, _ = reference.all_down_backward(x.nan_to_num(1), saved, weights, experts, activation)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=5e-6, equal_nan=True)


def test_x_in_another_type_is_converted_where_it_is_multiplied():
    indices = slots(37, 4, 2, 0.1)
    experts = parameters(4, "gelu", torch.float16)
    x, weights = normal(37, HIDDEN), torch.rand(37, 2).to(DEVICE)
    plan = reference.plan(indices, 4)
    _, pre = agree("up", x, plan, experts, 2, "gelu", True, tolerance=2e-3)
    backward = (x, pre, plan, weights, experts._replace(down_bias_EH=None), "gelu")
    grad_pre, weighted_act, _ = agree("down_backward", *backward, tolerance=2e-3, reduce=2)
    agree("down_weight_grad", x, weighted_act, plan, weights, True, tolerance=2e-3)
    agree("up_weight_grad", x, grad_pre, plan, 2, True, tolerance=2e-3)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_few_gradients_of_weights_are_summed_in_parts(dtype, has_bias, monkeypatch):
    """Of 150 rows experts have 0, 1 and 129: more parts than an expert has rows, and parts that end where it does. The
    same bits again."""
    monkeypatch.setattr(heuristics, "WEIGHT_GRAD_SPAN", 16)
    num_tokens, num_experts = 150, 3
    indices = torch.full((num_tokens, 1), 2, dtype=torch.int32)
    indices[5], indices[130:] = 1, -1
    indices = indices[torch.randperm(num_tokens)].to(DEVICE)
    x, planned = normal(num_tokens, HIDDEN, dtype=dtype), normal(num_tokens, FFN, dtype=dtype)
    planned_TEF = normal(num_tokens, num_experts, FFN, dtype=dtype)
    weights, weights_TE = torch.rand(num_tokens, 1).to(DEVICE), torch.rand(num_tokens, num_experts).to(DEVICE)
    plan, names = reference.plan(indices, num_experts), []
    with launch.watch(lambda one: names.append(one.kernel.fn.__name__) or True):
        for name, *arguments in (
            ("up_weight_grad", x, planned, plan, 1, has_bias),
            ("down_weight_grad", x, planned, plan, weights, has_bias),
            ("all_up_weight_grad", x, planned_TEF, has_bias),
            ("all_down_weight_grad", x, planned_TEF, weights_TE, has_bias),
        ):
            ours, again = (leaves(getattr(backend, name)(*arguments)) for _ in range(2))
            twins = leaves(getattr(reference, name)(*arguments))
            assert all(same(a, b, TOLERANCE[dtype]) for a, b in zip(ours, twins, strict=True)), name
            assert all(a is b is None or torch.equal(a, b) for a, b in zip(ours, again)), name
    assert names == ["_weight_grad_kernel", "_sum_parts_kernel"] * 8


def test_how_many_parts():
    """As many as leave each multiprocessor two programs, but none of few rows; enough programs are left alone."""
    parts = heuristics.weight_grad_parts
    assert parts(heuristics.NUM_SMS, 10**6) == 1
    assert parts(72, 65536) == 4
    assert parts(72, 2 * heuristics.WEIGHT_GRAD_SPAN) == 2
    assert parts(72, 2 * heuristics.WEIGHT_GRAD_SPAN - 1) == 1
    assert parts(1, 0) == 1
    assert all(2 * heuristics.NUM_SMS <= n * parts(n, 10**9) < 4 * heuristics.NUM_SMS for n in range(1, 132))


def test_two_runs_give_the_same_bits():
    indices = slots(200, 5, 2, 0.2)
    experts = parameters(5, "gelu", torch.float32)
    x = normal(200, HIDDEN)
    plan = backend.plan(indices, 5)
    runs = [backend.up(x, plan, experts, 2, "gelu", False)[0] for _ in range(2)]
    grads = [backend.up_weight_grad(x, runs[0], plan, 2, True) for _ in range(2)]
    assert torch.equal(*runs)
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])
