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
    device = cast(Tensor, arguments[0]).device.index
    if device is None or device == torch.cuda.current_device():
        _start(kernel, device, programs, arguments, constants, tile)
    else:
        with torch.cuda.device(device):  # Triton launches on the current one, whatever the pointers are of
            _start(kernel, device, programs, arguments, constants, tile)


_kept: dict[Hashable, Any] = {}
"""By configuration, the compiled kernels that ran. Triton's own launch finds out again each time, argument by argument,
which one it is: see `python -m bench.launches`."""


def _start(
    kernel: Any, device: int | None, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any], tile: Tile
) -> None:
    """Straight to the compiled kernel, where this configuration has run before."""
    values = [constants[name] for name in kernel.arg_names[len(arguments) :]]
    key = (kernel.fn, device, tile, *values, *map(_compiled_for, arguments))
    compiled = _kept.get(key)
    if compiled is not None:
        compiled[programs, 1, 1](*arguments, *values)
        return
    compiled = _start_anew(kernel, programs, arguments, constants, tile)
    # The interpreter compiles nothing; for AMD's, Triton also looks at how much memory a tensor has.
    if compiled is not None and torch.version.hip is None:
        _kept[key] = compiled


def _compiled_for(argument: Tensor | int | float | None) -> object:
    """What a kernel is compiled for, of an argument: its type, and whether 16 divides the address of a tensor. Integers
    of more than 32 bits have another type; else our kernels ask Triton not to look at them (`do_not_specialize`)."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int):
        return argument.bit_length() < 32
    return type(argument)


_fewer_stages: dict[Hashable, int] = {}
"""Launches that found too little shared memory, and the stages that they have now."""


def _start_anew(
    kernel: Any, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any], tile: Tile
) -> Any | None:
    """By Triton itself, which compiles what it does not have -> the compiled kernel.

    With fewer stages of the pipeline where the GPU has too little shared memory: slower, but the same bits.
    """
    configuration = _configuration(kernel, arguments, constants)
    stages = min(tile.num_stages, _fewer_stages.get(configuration, tile.num_stages))
    options = {"num_warps": tile.num_warps}
    if tile.max_registers and torch.version.hip is None:
        options["maxnreg"] = tile.max_registers
    while True:
        try:
            return kernel[(programs,)](*arguments, **constants, **options, num_stages=stages)
        except OutOfResources as error:
            if stages <= 1 or error.name != "shared memory":
                raise
            stages -= 1
            _fewer_stages[configuration] = stages
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
