"""Activations and their derivatives where they are as good as 0, 1 or linear, against PyTorch in fp64."""

import pytest
import torch
import torch.nn.functional as F

from kernels import dispatch
from kernels.records import ExpertWeights

FUNCTIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swiglu": F.silu,
    "geglu": F.gelu,
}
"""That of a gated activation's gate."""

LIMITS = {torch.float32: (2e-6, 2e-6), torch.float16: (1e-3, 1e-6), torch.bfloat16: (8e-3, 3e-4)}
"""Relative, absolute: an absolute error may not grow with x."""


def extremes(dtype):
    magnitudes = torch.logspace(0, 30, 241, dtype=torch.float64)
    magnitudes = magnitudes[magnitudes < torch.finfo(dtype).max]
    return torch.cat([magnitudes, -magnitudes]).to(dtype)


def close(got, expected, dtype):
    relative, absolute = LIMITS[dtype]
    error = (got.double().cpu() - expected).abs()
    return bool((error <= relative * expected.abs() + absolute).all())


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_extreme_inputs(activation, backend, dtype, device):
    """One expert with weights of 1: `up` is the activation and `down_backward` its derivative."""
    module, x = dispatch.get(backend), extremes(dtype)
    wide = x.double().requires_grad_()
    expected = FUNCTIONS[activation](wide)
    (expected_slope,) = torch.autograd.grad(expected.sum(), wide)

    rows, gated = len(x), activation in ("swiglu", "geglu")
    up_weight = torch.tensor([[[1.0], [0.0]] if gated else [[1.0]]]).to(device, dtype)
    up_bias = torch.tensor([[0.0, 1.0]]).to(device, dtype) if gated else None  # the gate is x, its factor 1
    experts = ExpertWeights(up_weight, up_bias, torch.ones(1, 1, 1).to(device, dtype), None)
    plan = module.plan(torch.zeros(rows, 1, dtype=torch.int32, device=device), 1)
    x, ones = x[:, None].to(device), torch.ones(rows, 1, device=device)
    act, pre = module.up(x, plan, experts, 1, activation, True)
    grad_pre, weighted_act, _ = module.down_backward(ones.to(dtype), pre, plan, ones, experts, activation)
    assert close(act[:, 0], expected.detach(), dtype)
    assert close(weighted_act[:, 0], expected.detach(), dtype)
    assert close(grad_pre[:, 0], expected_slope, dtype)
    if gated:
        assert close(grad_pre[:, 1], expected.detach(), dtype)

    # The kernels of a few tokens, and those of all experts.
    few, _ = module.up(x[-1:], module.plan(plan.order_S.new_zeros(1, 1), 1), experts, 1, activation, False)
    every, _ = module.all_up(x, ones, experts, activation, False)
    assert close(few[:, 0], expected.detach()[-1:], dtype)
    assert close(every[:, 0, 0], expected.detach(), dtype)
