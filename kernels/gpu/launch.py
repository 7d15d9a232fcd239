"""Where every kernel of this backend is launched: one place to count launches, and to see them without a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from kernels.gpu.heuristics import Tile


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
            kernel[(programs,)](*arguments, **constants, **options)
    else:
        kernel[(programs,)](*arguments, **constants, **options)


def input_precision() -> str:
    """How fp32 products are computed, from torch's own setting."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
