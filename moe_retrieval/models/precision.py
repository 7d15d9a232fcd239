"""The types that a forward computes in, by name; "auto" is the fastest of those that rank alike."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from kernels import dispatch
from kernels.contract import Backend
from moe_retrieval.errors import InputError

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def resolve(precision: str, device: torch.device) -> str:
    """What "auto" is on this device, with the backend that runs there: bf16 where that is faster, else fp32.

    The two rank alike (bench/results, the files of quality); fp16 overflows in some models, and must be asked for.
    """
    if precision not in ("auto", *PRECISIONS):
        raise InputError(f"precision must be one of auto, {', '.join(PRECISIONS)}; got {precision!r}")
    if precision != "auto":
        return precision
    return _fastest(dispatch.pick(device, torch.float32), device)


def for_training(device: torch.device) -> str:
    """What "auto" is there: most products of a step are PyTorch's own, whatever backend computes the experts."""
    return _fastest(dispatch.get("eager"), device)


def _fastest(backend: Backend, device: torch.device) -> str:
    return "bf16" if backend.prefers_bf16(device) else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context in which a forward computes in this precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, PRECISIONS[precision])
