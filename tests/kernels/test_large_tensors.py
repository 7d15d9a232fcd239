"""More elements than an int32 counts. Few are touched: the rest is memory that the system never has to give."""

import numpy as np
import pytest
import torch

import kernels

HIDDEN, FFN = 1024, 512
MANY = 2**31 // (HIDDEN * FFN) + 1
"""Experts: the offset of the last one's weights needs 33 bits with a sign."""


@pytest.fixture(autouse=True)
def on_a_cpu(backend, device):
    if backend == "triton" or device.type != "cpu":
        pytest.skip("counts on memory that is there when it is touched")


def zeros(*shape):
    """bf16. Pages that are not touched do not exist: `torch.zeros` touches them all."""
    return torch.from_numpy(np.zeros(shape, dtype=np.int16)).view(torch.bfloat16)


def test_more_weights_than_an_int32_counts(backend, device):
    torch.manual_seed(0)
    stacks = zeros(MANY, FFN, HIDDEN), zeros(MANY, FFN), zeros(MANY, HIDDEN, FFN), zeros(MANY, HIDDEN)
    assert stacks[0][:-1].numel() >= 2**31
    for stack in stacks:
        stack[-1] = torch.randn(stack.shape[1:]) / stack.shape[-1] ** 0.5
        stack[0] = float("nan")  # where an offset that was cut off would lead
    results = []
    for experts, index in ((stacks, MANY - 1), ([stack[-1:].clone() for stack in stacks], 0)):
        torch.manual_seed(1)
        x = torch.randn(5, HIDDEN).bfloat16().requires_grad_()
        indices = torch.tensor([[index], [-1], [index], [index], [index]], dtype=torch.int32)
        y = kernels.expert_mlp(x, indices, torch.rand(5, 1), *experts)
        y.backward(torch.randn(5, HIDDEN).bfloat16())
        results.append((y, x.grad))
    for got, expected in zip(*results):
        assert expected[[0, 2, 3, 4]].norm() > 1
        assert torch.equal(got, expected)


@pytest.mark.slow
def test_more_tokens_than_an_int32_counts(backend, device):
    """All of y is written, 4.3 GB; of x only the last rows are read."""
    tokens = 2**31 // HIDDEN + 3
    x = zeros(tokens, HIDDEN)
    x[-3:] = torch.randn(3, HIDDEN)
    torch.manual_seed(0)
    experts = [torch.randn(shape).bfloat16() / 32 for shape in ((2, 8, HIDDEN), (2, 8), (2, HIDDEN, 8), (2, HIDDEN))]
    indices = torch.full((tokens, 1), -1, dtype=torch.int32)
    indices[-3:, 0] = torch.tensor([0, 1, 0])
    weights = torch.ones(tokens, 1)
    y = kernels.expert_mlp(x, indices, weights, *experts)
    assert torch.equal(y[-3:], kernels.expert_mlp(x[-3:].clone(), indices[-3:], weights[-3:], *experts))
    assert not y[:3].any()
    assert not y[tokens // 2 : tokens // 2 + 3].any()


def test_shapes_alone(backend, device):
    hidden, tokens = 2**14, 2**17 + 1
    for layer in (
        kernels.MoE(hidden, 2**15, num_experts=8, top_k=2, device="meta"),
        kernels.SBMoE(hidden, num_experts=17, top_k=1, device="meta"),
    ):
        assert layer.experts.up_weight.numel() > 2**31
        x = torch.empty(tokens, hidden, device="meta", requires_grad=True)
        y = layer(x)
        (y.sum() + kernels.aux_loss(layer)).backward()
        assert y.shape == x.grad.shape == x.shape
        assert all(parameter.grad.shape == parameter.shape for parameter in layer.parameters())
