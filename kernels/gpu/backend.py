"""The primitives of `contract.PRIMITIVES` as Triton kernels, for GPUs; under TRITON_INTERPRET=1, on the CPU."""

import os
import sys

import torch

from kernels.gpu import NO_DEVICE

if not torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ and "triton" not in sys.modules:
    raise ImportError(NO_DEVICE)  # before triton and the kernels are imported for nothing: half a second

try:
    import triton
except ImportError as error:
    raise ImportError("the triton package is not installed") from error

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
    "supports",
    "up",
    "up_backward",
    "up_weight_grad",
]

name = "triton"

INTERPRETED: bool = triton.knobs.runtime.interpret

if not INTERPRETED and not torch.cuda.is_available():
    raise ImportError(NO_DEVICE)


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """GPU tensors in fp32, fp16 and bf16. The interpreter takes CPU tensors, and computes bf16 wrong."""
    if INTERPRETED:
        return device.type in ("cpu", "cuda") and dtype in (torch.float32, torch.float16)
    return device.type == "cuda" and dtype in (torch.float32, torch.float16, torch.bfloat16)
