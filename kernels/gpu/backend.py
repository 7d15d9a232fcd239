"""The primitives of `contract.PRIMITIVES`, and some fusions, as Triton kernels for GPUs; under TRITON_INTERPRET=1, on
the CPU."""

import functools
import os
import sys
import warnings

import torch

from kernels.gpu import NO_DEVICE

if not torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ and "triton" not in sys.modules:
    raise ImportError(NO_DEVICE)  # before triton and the kernels are imported for nothing: half a second

try:
    import triton
except ImportError as error:
    raise ImportError("the triton package is not installed") from error

from kernels import reference
from kernels.gpu.all_experts import (
    all_down,
    all_down_backward,
    all_down_weight_grad,
    all_up,
    all_up_backward,
    all_up_weight_grad,
)
from kernels.gpu.attention import attention
from kernels.gpu.attention_backward import attention_backward
from kernels.gpu.combine import combine
from kernels.gpu.gate import choose, gate
from kernels.gpu.gate_backward import choose_backward, gate_backward
from kernels.gpu.grouped import down, up
from kernels.gpu.grouped_backward import down_backward, up_backward
from kernels.gpu.plan import plan
from kernels.gpu.residual_norm import residual_norm, residual_norm_backward
from kernels.gpu.weight_grad import down_weight_grad, up_weight_grad

__all__ = [
    "all_down",
    "all_down_backward",
    "all_down_weight_grad",
    "all_up",
    "all_up_backward",
    "all_up_weight_grad",
    "attention",
    "attention_backward",
    "choose",
    "choose_backward",
    "combine",
    "down",
    "down_backward",
    "down_weight_grad",
    "gate",
    "gate_backward",
    "name",
    "plan",
    "prefers_bf16",
    "residual_norm",
    "residual_norm_backward",
    "supports",
    "up",
    "up_backward",
    "up_weight_grad",
]

name = "triton"

LEAST_CAPABILITY = (8, 0)

INTERPRETED: bool = triton.knobs.runtime.interpret

if not INTERPRETED and not torch.cuda.is_available():
    raise ImportError(NO_DEVICE)


def prefers_bf16(device: torch.device) -> bool:
    """As PyTorch does; the interpreter does not have it."""
    return not INTERPRETED and reference.prefers_bf16(device)


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """GPU tensors in fp32, fp16 and bf16. The interpreter takes CPU tensors, and computes bf16 wrong."""
    if INTERPRETED:
        return device.type in ("cpu", "cuda") and dtype in (torch.float32, torch.float16)
    return device.type == "cuda" and dtype in (torch.float32, torch.float16, torch.bfloat16) and _is_able(device)


@functools.cache
def _is_able(device: torch.device) -> bool:
    """Whether Triton compiles for it: on NVIDIA's from Ampere on."""
    if torch.version.hip is not None:
        return True
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        has, needed = (".".join(map(str, version)) for version in (capability, LEAST_CAPABILITY))
        name = torch.cuda.get_device_name(device)
        warnings.warn(f"no Triton on {name}: it has compute capability {has}, {needed} is needed", stacklevel=2)
    return capability >= LEAST_CAPABILITY
