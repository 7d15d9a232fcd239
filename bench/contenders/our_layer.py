"""Our own layer as a contender: what its cases need of `kernels` beyond the public names."""

from collections.abc import Callable

import torch
from torch import nn

import kernels
from kernels import dispatch

Layer = kernels.MoE | kernels.SBMoE


def backend(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> str:
    """The one that `auto` picks."""
    return dispatch.pick(device, dtype).name


def drop_statistics(module: nn.Module) -> Callable[[], object] | None:
    """-> what drops the sums of a forward for a router loss, which no peer has and none is asked for."""
    return module.sums.take if isinstance(module, Layer) else None


def native_level() -> str:
    """The instruction set that the native backend has chosen."""
    from kernels.cpu import backend

    return backend.level
