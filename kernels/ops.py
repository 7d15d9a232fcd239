"""The boundary to PyTorch: one `torch.library` op for the forward and one for the backward of each path.

An op's body is a function over a backend and records; its schema, its flat arguments and its results are derived from
the body's annotations, so nothing is written twice. Compilers see the op as one opaque call with known output shapes;
the backend is picked inside, when it runs, so that it can be switched under a compiled graph too. One op a path rather
than one a primitive: a call costs 4 µs on a CPU, which is what a whole small GEMM costs.
"""

import types
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

from kernels import dispatch
from kernels.records import flatten, pack

_library = torch.library.Library("moe_retrieval", "DEF")

_TYPES = {Tensor: "Tensor", int: "int", float: "float", bool: "bool", str: "str"}


class _Part(NamedTuple):
    """A parameter or a result of a body: a record, or a type that a schema has."""

    kind: Any
    names: tuple[str, ...]
    types: tuple[str, ...]
    """With "?" where it may be None."""


def _split_optional(hint: Any) -> tuple[Any, str]:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, ""
    (kind,) = (argument for argument in get_args(hint) if argument is not type(None))
    return kind, "?"


def _part(name: str, hint: Any) -> _Part:
    """A record that may be None is one whose fields all may be."""
    kind, whole = _split_optional(hint)
    if not hasattr(kind, "_fields"):
        return _Part(kind, (name,), (_TYPES[kind] + whole,))
    fields = {field: _split_optional(its) for field, its in get_type_hints(kind).items()}
    names = tuple(f"{name}_{field}" for field in fields)
    return _Part(kind, names, tuple(_TYPES[its] + (whole or optional) for its, optional in fields.values()))


def _slices(parts: list[_Part]) -> tuple[tuple[type | None, int, int], ...]:
    """Of each parameter: its record, if it is one, and its place among the flat arguments."""
    slices, first = [], 0
    for part in parts:
        last = first + len(part.names)
        slices.append((part.kind if hasattr(part.kind, "_fields") else None, first, last))
        first = last
    return tuple(slices)


def _declare(parts: list[_Part], results: bool = False) -> str:
    pairs = [pair for part in parts for pair in zip(part.types, part.names)]
    return ", ".join(f"{kind.rstrip('?') if results else kind} {name}" for kind, name in pairs)


class Op:
    """`body(backend, *arguments)` as an op of PyTorch, which is called with the same arguments but the backend."""

    def __init__(
        self,
        body: Callable[..., Any],
        fake: Callable[..., Any],
        compute: str,
        rows: str | None,
        strided: Collection[str],
    ):
        hints = get_type_hints(body)
        self._result = hints.pop("return")
        is_record = hasattr(self._result, "_fields")
        parts = [_part(name, hint) for name, hint in hints.items() if name != "backend"]
        outputs = get_type_hints(self._result) if is_record else {"result": self._result}
        output_parts = [_part(name, hint) for name, hint in outputs.items()]
        names = [name for part in parts for name in part.names]
        self._slices = _slices(parts)
        self._output_kinds = tuple(part.kind for part in output_parts) if is_record else ()
        self._may_be_none = tuple(kind.endswith("?") for part in output_parts for kind in part.types)
        self._compute = names.index(compute)
        self._rows = None if rows is None else names.index(rows)
        kinds = [kind for part in parts for kind in part.types]
        self._dense = tuple(
            position
            for position, (name, kind) in enumerate(zip(names, kinds))
            if kind.startswith("Tensor") and name not in strided
        )
        self._body, self._fake = body, fake

        name = body.__name__
        _library.define(f"{name}({_declare(parts)}) -> ({_declare(output_parts, results=True)})")
        self.overload = getattr(torch.ops.moe_retrieval, name).default
        _library.impl(name, self._run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"moe_retrieval::{name}", self._run_fake, lib=_library)

    def __call__(self, *arguments: Any) -> Any:
        flat = self.overload(*flatten(arguments))
        if not self._output_kinds:
            return flat
        flat = (flat,) if len(self._may_be_none) == 1 else flat
        leaves = [
            None if optional and leaf.ndim == 1 and leaf.shape[0] == 0 else leaf
            for leaf, optional in zip(flat, self._may_be_none)
        ]
        return self._result(*pack(leaves, *self._output_kinds))

    def _run(self, *flat: Any) -> Any:
        compute: Tensor = flat[self._compute]
        rows = 0 if self._rows is None else len(flat[self._rows])
        backend = dispatch.pick(compute.device, compute.dtype, rows)
        # Here alone: kernels read memory, and a parameter can be a transpose, a slice or an expanded row.
        for position in self._dense:
            tensor = flat[position]
            if tensor is not None and not tensor.is_contiguous():
                flat = (*flat[:position], tensor.contiguous(), *flat[position + 1 :])
        arguments = self._arguments(flat)
        if torch.is_autocast_enabled(compute.device.type):  # the casts were made before; here they would be undone
            with torch.autocast(compute.device.type, enabled=False):
                return self._return(self._body(backend, *arguments), compute)
        return self._return(self._body(backend, *arguments), compute)

    def _run_fake(self, *flat: Any) -> Any:
        return self._return(self._fake(*self._arguments(flat)), flat[self._compute])

    def _arguments(self, flat: tuple[Any, ...]) -> list[Any]:
        """As `records.pack`, at places that are known beforehand: each call goes through here."""
        return [
            flat[first] if kind is None else tuple.__new__(kind, flat[first:last]) for kind, first, last in self._slices
        ]

    def _return(self, result: Any, like: Tensor) -> Any:
        """An op cannot return None: an empty tensor of one dimension stands for it."""
        if not self._output_kinds:
            return result
        leaves = tuple(like.new_empty(0) if leaf is None else leaf for leaf in flatten(result))
        return leaves[0] if len(leaves) == 1 else leaves


def define(
    *, fake: Callable[..., Any], compute: str, rows: str | None = None, strided: Collection[str] = ()
) -> Callable[[Callable], Op]:
    """Registers the decorated `body(backend, *arguments)` as an op of its name.

    The tensor named `compute` says on which device and in which type the backend must be able to run, that named `rows`
    how many tokens go through experts. Tensors that are not contiguous are made so, but for those named in `strided`.
    `fake(*arguments)` has the body's results, empty.
    """
    return lambda body: Op(body, fake, compute, rows, strided)


def empty_like(tensor: Tensor) -> Tensor:
    """For fakes: what an op returns is contiguous, however its input lies."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def is_watched(tensor: Tensor) -> bool:
    """Whether anything but the dispatcher must see a call: a compiler, a dispatch mode, a transform, a subclass."""
    return (
        type(tensor) is not Tensor
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or is_transformed()
    )


def is_transformed() -> bool:
    """Whether `torch.func` transforms what runs now, or tensors may carry a tangent."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def has_numbers(tensor: Tensor) -> bool:
    """Whether what is computed from it now outlives the call: no shape alone, and nothing inside of a transform."""
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting()
    in_function = torch._C._functorch.peek_interpreter_stack() is not None
    return not (in_function or tensor.is_meta or isinstance(tensor, FakeTensor) or torch.jit.is_tracing())


def check_differentiable(*tensors: Tensor | None, records_gradient: bool) -> None:
    """Autograd alone knows our backward. `torch.vmap` runs an op in a loop; a tangent would silently be lost."""
    if torch.compiler.is_compiling():
        return
    if records_gradient and torch.jit.is_tracing():
        raise RuntimeError("torch.jit.trace records no gradient through the operations of kernels: use torch.no_grad()")
    if not is_transformed():
        return
    in_function = torch._C._functorch.peek_interpreter_stack() is not None
    has_tangent = any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    if has_tangent or (records_gradient and in_function):
        raise RuntimeError(
            "torch.func and forward-mode differentiation do not reach through the operations of kernels: "
            "differentiate with torch.autograd; torch.vmap works under torch.no_grad()"
        )
