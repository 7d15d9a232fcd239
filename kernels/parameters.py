"""The parameters, buffers and parts of a module.

As attributes, nn.Module would look for each in Python, which a call on one token or one query feels.
"""

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import torch
from torch import nn


def reader(*names: str) -> Callable[[nn.Module], tuple[Any, ...]]:
    """-> a function from a module to its parameters of these names."""
    registered = itemgetter(*names)

    def read(module: nn.Module) -> tuple[Any, ...]:
        if not torch.compiler.is_compiling():
            try:
                return registered(module._parameters)
            except KeyError:  # parametrised
                pass
        return tuple(getattr(module, name) for name in names)

    return read


weight_and_bias = reader("weight", "bias")


def part(module: nn.Module, name: str) -> Any:
    """The module of this name within `module`, or None."""
    return getattr(module, name) if torch.compiler.is_compiling() else module._modules.get(name)


def buffer(module: nn.Module, name: str) -> Any:
    """The buffer of this name, which may be None."""
    found = {} if torch.compiler.is_compiling() else module._buffers
    return found[name] if name in found else getattr(module, name)
