"""Where every kernel of this backend is launched: one place to count launches, and to see them without a GPU."""

import functools
import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from kernels.gpu.heuristics import Tile

log = logging.getLogger("kernels")


class Launch(NamedTuple):
    """One launch, as it would reach the device."""

    kernel: Any
    programs: int
    arguments: tuple[Tensor | int | float | None, ...]
    """The positional ones: what is known when it runs. A tensor's type, and None, are known when it compiles."""
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    max_registers: int
    """0: the compiler's choice. Only NVIDIA's takes such a limit."""


_watcher: Callable[[Launch], bool] | None = None


@contextmanager
def watch(watcher: Callable[[Launch], bool]) -> Iterator[None]:
    """Shows every launch inside the context to `watcher` first; where it returns False, the launch does not happen."""
    global _watcher
    previous, _watcher = _watcher, watcher
    try:
        yield
    finally:
        _watcher = previous


def launch(kernel: Any, programs: int, *arguments: Tensor | int | float | None, tile: Tile, **constants: Any) -> None:
    """Runs `programs` instances of a kernel, on the device of its first argument, a tensor; none is fine."""
    if programs == 0:
        return
    if _watcher is not None:
        seen = Launch(kernel, programs, arguments, constants, tile.num_warps, tile.num_stages, tile.max_registers)
        if not _watcher(seen):
            return
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    if tile.max_registers and torch.version.hip is None:
        options["maxnreg"] = tile.max_registers
    device = cast(Tensor, arguments[0]).device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):  # Triton launches on the current one, whatever the pointers are of
            _start(kernel, programs, arguments, constants, options)
    else:
        _start(kernel, programs, arguments, constants, options)


_fewer_stages: dict[Hashable, int] = {}
"""Launches that found too little shared memory, and the stages that they have now."""


def _start(kernel: Any, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any], options: Any) -> None:
    """With fewer stages of the pipeline where the GPU has too little shared memory: slower, but the same bits."""
    configuration: Hashable = None
    if _fewer_stages:
        configuration = _configuration(kernel, arguments, constants)
        options["num_stages"] = min(options["num_stages"], _fewer_stages.get(configuration, options["num_stages"]))
    while True:
        try:
            kernel[(programs,)](*arguments, **constants, **options)
            return
        except OutOfResources as error:
            if options["num_stages"] <= 1 or error.name != "shared memory":
                raise
            options["num_stages"] -= 1
            configuration = configuration or _configuration(kernel, arguments, constants)
            _fewer_stages[configuration] = options["num_stages"]
            _say_once(error.limit)


def _configuration(kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> Hashable:
    types = tuple(argument.dtype if isinstance(argument, Tensor) else None for argument in arguments)
    return kernel, types, tuple(constants.items())


@functools.cache
def _say_once(limit: int) -> None:
    log.warning("this GPU has %d KB of shared memory a program: kernels run with fewer stages, and slower", limit >> 10)


def input_precision() -> str:
    """How fp32 products are computed, from torch's own setting."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
