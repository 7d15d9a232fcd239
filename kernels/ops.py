"""The boundary to PyTorch: one `torch.library` op for the forward and one for the backward of each path.

An op's body is a function of `functional.py` over a backend's primitives. Compilers see the op as one opaque call with
known output shapes; the backend is picked inside, when it runs, so that it can be switched under a compiled graph too.
One op a path rather than one a primitive: a call costs 4 µs on a CPU, which is what a whole small GEMM costs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels import dispatch

_library = torch.library.Library("moe_retrieval", "DEF")


def is_watched(tensor: Tensor) -> bool:
    """Whether anything but the dispatcher must see a call: a compiler, a dispatch mode, a transform, a subclass."""
    return (
        type(tensor) is not Tensor
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def define(schema: str, fake: Callable[..., Any], compute: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers the decorated `body(backend, *arguments)` under the op that `schema` declares; returns the op.

    The tensor named `compute` in the schema says on which device and in which type the backend must be able to run.
    """
    name = schema.partition("(")[0]

    def register(body: Callable[..., Any]) -> Callable[..., Any]:
        _library.define(schema)
        op = getattr(torch.ops.moe_retrieval, name).default
        position = [argument.name for argument in op._schema.arguments].index(compute)

        def run(*arguments: Any) -> Any:
            tensor: Tensor = arguments[position]
            device = tensor.device
            backend = dispatch.pick(device, tensor.dtype)
            if torch.is_autocast_enabled(device.type):  # the casts were made before; here they would be undone
                with torch.autocast(device.type, enabled=False):
                    return body(backend, *arguments)
            return body(backend, *arguments)

        _library.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"moe_retrieval::{name}", fake, lib=_library)
        return op

    return register
