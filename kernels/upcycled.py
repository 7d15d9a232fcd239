"""A mixture of experts in the place of a feed-forward part, without the padding that the block around it masks."""

import inspect
import threading
from typing import Any

import torch
from torch import Tensor, nn

from kernels.attention_mask import kept_tokens
from kernels.layers import MoE


class UpcycledMoE(MoE):
    """A `MoE` that leaves out the padding of the call that it is part of."""

    ffn: tuple[str, str]
    """The names of the two Linears that were here, relative to their block."""
    padding: "Padding | None" = None
    """None where no module around it takes an attention mask."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """As in `MoE`, without the padding that the attention mask shows."""
        if mask is None and self.padding is not None:
            mask = self.padding.kept(x)
        return super().forward(x, mask)


class Linearless(nn.Identity):
    """In the place of the second Linear. T5 casts to the type of its weight, if it has one."""

    weight = None
    bias = None


class _Call:
    """What one call of a block says about padding."""

    def __init__(self, padding: "Padding", backward: int, kept_BL: Tensor | None, ends: bool):
        self.padding, self.backward, self.kept_BL, self.ends = padding, backward, kept_BL, ends
        self.position = 0
        """How much of the sequence the experts have had, where the block feeds it in parts."""


class _Calls(threading.local):
    """Those of a thread, the latest last."""

    def __init__(self) -> None:
        self.stack: list[_Call] = []


_calls = _Calls()


class Padding:
    """What the calls of a block say about padding, for the experts in it.

    A call's mask belongs to its thread and to its backward pass (-1 outside of any) and ends with the call. A block
    that checkpointing runs again gets the mask of its own batch, which is why it is not read at the model.
    transformers checkpoints a block's forward, and not its hooks: there the attention inside shows the mask, and what
    it showed is void when the backward pass has ended.
    """

    def __init__(self, block: nn.Module, attention: nn.Module | None):
        self.position = _position(block)
        self.in_parts = bool(getattr(block, "chunk_size_feed_forward", 0))
        block.register_forward_pre_hook(self.enter, with_kwargs=True)
        block.register_forward_hook(self.leave, always_call=True)
        if attention is not None:
            self.attention_position = _position(attention)
            attention.register_forward_pre_hook(self.recompute, with_kwargs=True)

    def enter(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """The block's pre-hook."""
        self._push(_kept(args, kwargs, self.position), ends=True)

    def leave(self, block: nn.Module, args: tuple, result: Any) -> None:
        """The block's hook, which runs when an exception ends the call, too."""
        call = self._current()
        if call is not None:  # else what came before `enter` has raised
            _calls.stack.remove(call)

    def recompute(self, attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """The attention's pre-hook."""
        call = self._current()
        if call is None or not call.ends:
            self._push(_kept(args, kwargs, self.attention_position), ends=False)

    def kept(self, x: Tensor) -> Tensor | None:
        """The mask of what the experts get now: x [B, L or a part of it, H], or [B * L, H]."""
        call = self._current()
        if call is None and _backward_pass() != -1:
            raise RuntimeError(
                "checkpointing runs these experts again without what shows them the attention mask: "
                "checkpoint whole Transformer layers"
            )
        if call is None or call.kept_BL is None:
            return None
        texts, length = call.kept_BL.shape
        if x.ndim == 2 and length and x.shape[0] % length == 0 and texts in (1, x.shape[0] // length):
            return call.kept_BL.expand(x.shape[0] // length, length).reshape(-1)
        if x.ndim != 3:
            return None
        start, stop = call.position, call.position + x.shape[1]
        if texts not in (1, x.shape[0]) or stop > length:
            raise ValueError(
                f"the attention mask shows {texts} texts of {length} tokens, and the experts got {tuple(x.shape)}: "
                "which of them are padding cannot be told"
            )
        if x.shape[1] < length:
            if not self.in_parts:  # what was pooled is no padding
                return None
            call.position = stop % length
        return call.kept_BL[:, start:stop].expand(x.shape[:-1])

    def _push(self, kept_BL: Tensor | None, ends: bool) -> None:
        stack, backward = _calls.stack, _backward_pass()
        if not torch.compiler.is_compiling():  # without what is void
            stack[:] = [
                call
                for call in stack
                if (call.ends or call.backward == backward) and (call.padding is not self or call.backward != backward)
            ]
        stack.append(_Call(self, backward, kept_BL, ends))

    def _current(self) -> _Call | None:
        backward = _backward_pass()
        for call in reversed(_calls.stack):
            if call.padding is self and call.backward == backward:
                return call
        return None


def _kept(args: tuple, kwargs: dict[str, Any], position: int | None) -> Tensor | None:
    """What the mask among a module's arguments keeps."""
    mask = kwargs.get("attention_mask")
    if mask is None and position is not None and len(args) > position:
        mask = args[position]
    others = (value for value in (*args, *kwargs.values()) if value is not mask)
    tokens = next((value for value in others if isinstance(value, Tensor)), None)
    return None if tokens is None or tokens.ndim < 2 else kept_tokens(mask, *tokens.shape[:2])


def takes_mask(module: nn.Module) -> bool:
    return "attention_mask" in _parameters(module)


def _position(module: nn.Module) -> int | None:
    """Of the mask among a module's arguments; None where it is passed by name only."""
    parameters = _parameters(module)
    by_name = parameters["attention_mask"].kind is inspect.Parameter.KEYWORD_ONLY
    return None if by_name else list(parameters).index("attention_mask")


def _parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    """Its forward's, without self."""
    parameters = dict(inspect.signature(type(module).forward).parameters)
    del parameters[next(iter(parameters))]
    return parameters


def _backward_pass() -> int:
    """The backward pass that this thread is in, -1 outside of any."""
    return -1 if torch.compiler.is_compiling() else torch._C._current_graph_task_id()
