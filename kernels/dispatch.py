"""Which backend runs: "triton", "native" or "eager".

A backend is a module as `contract.py` describes it. It is imported when it is first looked for; if its import fails
because something is missing (Triton, a compiler, an instruction set), it is not available here, and the reason is kept
for the error that asking for it by name raises.
"""

import functools
import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kernels.contract import Backend

MODULES = {"triton": "kernels.gpu.backend", "native": "kernels.cpu.backend", "eager": "kernels.reference"}
"""In the order of preference."""

_requested = "auto"
_loaded: dict[str, Backend | ImportError] = {}


def _load(name: str) -> Backend | ImportError:
    if name not in _loaded:
        try:
            _loaded[name] = Backend(importlib.import_module(MODULES[name]))
        except ImportError as error:
            _loaded[name] = error
    return _loaded[name]


def available_backends() -> list[str]:
    """The backends that can run on this machine, the preferred one first."""
    return [name for name in MODULES if isinstance(_load(name), Backend)]


def get(name: str) -> Backend:
    """The backend of this name, or an error that says why there is none."""
    if name not in MODULES:
        raise ValueError(f"backend must be one of {', '.join(['auto', *MODULES])}; got {name!r}")
    backend = _load(name)
    if isinstance(backend, ImportError):
        raise RuntimeError(f"backend {name!r} is not available here: {backend}") from backend
    return backend


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run everything in this context, in every thread, on one backend: "auto", "triton", "native" or "eager".

    The backend is chosen when an operation runs, not when it is recorded: a backward pass outside of it runs
    on the backend that is in force there. "auto" picks the best for each device and falls back to "eager"; a
    backend asked for by name raises where it cannot run.
    """
    global _requested
    if name != "auto":
        get(name)
    previous, _requested = _requested, name
    try:
        yield
    finally:
        _requested = previous


@functools.cache
def _say_once(reason: str) -> None:
    warnings.warn(f"running in plain PyTorch, which is slower: {reason}", stacklevel=2)


_picked: dict[tuple[str, str, torch.dtype], Backend] = {}


def pick(device: torch.device, dtype: torch.dtype, rows: int = 0) -> Backend:
    """The backend for tensors on this device, computing in this type; `rows`: tokens that go through experts."""
    key = (_requested, device.type, dtype)
    backend = _picked.get(key)
    if backend is None:
        backend = _picked[key] = _find(device, dtype)
    if rows and _requested == "auto" and backend.is_beaten(dtype, rows):
        return get("eager")
    return backend


def _find(device: torch.device, dtype: torch.dtype) -> Backend:
    if _requested == "auto":
        # On a CPU, Triton is its interpreter: right, and a thousand times too slow for a default.
        for name in ("native", "eager") if device.type == "cpu" else ("triton", "eager"):
            backend = _load(name)
            if isinstance(backend, ImportError):
                if device.type in ("cpu", "cuda"):
                    _say_once(str(backend))
            elif backend.supports(device, dtype):
                return backend
    backend = get(_requested)
    if not backend.supports(device, dtype):
        raise RuntimeError(f"backend {_requested!r} cannot run on {device.type} tensors in {dtype}")
    return backend
