"""What is compiled ahead of time is what runs."""

import pytest

pytest.importorskip("triton")

from tests.kernels.gpu.uninterpreted import run

PROOF = """
import torch
from bench.harness import no_gpu
no_gpu.start()
import kernels
from kernels.gpu import launch, sweep

def kind(one):
    types = [a.dtype if isinstance(a, torch.Tensor) else type(a) for a in one.arguments]
    return one.kernel.fn.__name__, dict(zip(one.kernel.arg_names, types))

layers = [
    kernels.MoE(64, 256, num_experts=8, top_k=2), kernels.MoE(64, 256, num_experts=8, top_k=2, activation="swiglu"),
    kernels.SBMoE(64, num_experts=6), kernels.SBMoE(64, num_experts=6, top_k="all"),
]

def step(layer, half, x_dtype):
    x, seen = torch.randn(16, 64, dtype=x_dtype, requires_grad=True), []
    with kernels.use_backend("triton"), launch.watch(lambda one: bool(seen.append(kind(one)))):
        with torch.autocast("cpu", half):
            y, loss = layer(x), kernels.aux_loss(layer)
        assert y.dtype == x_dtype
        torch.autograd.backward([y, loss], [torch.ones_like(y), None])
    assert len(seen) > 10
    return seen

def check(listed, half, x_dtype):
    missing = [one for layer in layers for one in step(layer, half, x_dtype) if one not in listed]
    assert not missing, (half, x_dtype, missing)

listed = list(map(kind, sweep.launches()))
for half in (torch.bfloat16, torch.float16):
    for x_dtype in (torch.float32, half):
        check(listed, half, x_dtype)
check(list(map(kind, sweep.launches(quick=True))), torch.bfloat16, torch.float32)
"""


def test_the_types_that_meet_under_autocast():
    """Layers as a trainer runs them: every kernel, the types of its arguments, and which of them are none. The quick
    subset has them of bf16 that meets the fp32 of a residual connection."""
    result = run("-c", PROOF)
    assert result.returncode == 0, result.stderr[-3000:]
