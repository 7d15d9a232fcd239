"""Triton without a GPU: a launch goes through everything that happens on the host, to a driver that does nothing.

Tensors are on the CPU, and what kernels would write into them stays undefined. It lasts until the process ends.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver

from kernels import contract, dispatch

TARGET = GPUTarget("cuda", 90, 32)


class _Driver:
    """What a launch asks of it, and the loading of what was compiled."""

    def __init__(self) -> None:
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *given: None

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024}

    def load_binary(self, name: str, *_: Any) -> tuple[str, str, int, int, int]:
        """-> a module, a function, its registers and spills, the most threads of a program"""
        return name, name, 0, 0, 1024


def start(took: list[tuple[CompiledKernel, tuple[Any, ...]]] | None = None, compiles: bool = False) -> None:
    """From here on, `kernels.use_backend("triton")` works on the CPU. Kernels are compiled only if that is asked for;
    else a stand-in and the arguments of each launch are added to `took`, if it is there."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: the interpreter has no launches")
    driver.set_active(_Driver())
    if not compiles:
        triton.compiler.compile = partial(_stand_in, took)
    with mock.patch.object(torch.cuda, "is_available", return_value=True):
        backend = contract.Backend(importlib.import_module("kernels.gpu.backend"))
    backend.supports = lambda device, dtype: True
    dispatch._loaded["triton"] = backend


def _stand_in(took: list | None, source: Any, **settings: Any) -> CompiledKernel:
    """A kernel as it is after its first launch: it is loaded."""
    compiled = CompiledKernel.__new__(CompiledKernel)
    compiled.src, compiled.name, compiled.packed_metadata = source, source.fn.__name__, ()
    compiled.module = compiled.function = compiled.name
    compiled._run = partial(_take, compiled, took)
    return compiled


def _take(compiled: CompiledKernel, took: list | None, *given: Any) -> None:
    """What comes before the arguments: a grid of three, the stream, what was loaded, and four of Triton's own."""
    if took is not None:
        took.append((compiled, given[9:]))
