"""The types that a forward computes in, by name."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context in which a forward computes in this precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, PRECISIONS[precision])
