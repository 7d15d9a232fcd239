"""Modules whose weights are about to be loaded: random numbers that nobody will see take half a second to draw."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

DRAWS = frozenset(("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_"))
"""torch's functions, and those of nn.init, that fill memory with random numbers."""


class Undrawn(TorchFunctionMode):
    """Inside, a module is made as ever, but memory that would be filled with random numbers stays as it is.

    The meta device would do, but its random functions import torch's compiler: two seconds.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: tuple = (), options: dict[str, Any] | None = None
    ) -> Any:
        options = options or {}
        if getattr(function, "__name__", "") in DRAWS:
            return arguments[0] if arguments else options["tensor"]
        return function(*arguments, **options)


@contextmanager
def sizes_alone() -> Iterator[None]:
    """Inside, a module takes no memory: it is made to be counted, or held against weights of unknown sizes."""
    with torch.device("meta"), Undrawn():
        yield
