"""Autocast, on any device: torch's own questions raise where there is none, as on the meta device."""

from contextlib import AbstractContextManager, nullcontext

import torch


def is_on(device_type: str) -> bool:
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def off(device_type: str) -> AbstractContextManager[None]:
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)
