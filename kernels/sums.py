"""The statistics that a layer keeps for the losses of its router.

Every MoE layer adds up, over all its forwards since the last `aux_loss`, what `reference.choose` calls a row of
partials: E counts, E probability sums, the squared log-sum-exp, tokens. Sums add up over batches, chunks and ranks.

A loss is a function L of the total c + s_1 + ... + s_n: the sums s_i of the forwards that can still be differentiated,
and constants c. Its gradient is L'(total) times the sum of their gradients. When a backward pass that went without the
loss has freed a forward, its s_i becomes a part of c: the value of the loss stays what it is, and its gradient is that
with respect to the other forwards. That is not the gradient of their loss alone: the means in it are over all tokens.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

_collecting = False

FORWARDS_BEFORE_WARNING = 100
"""More than a step has: twelve blocks that share a layer, and eight texts a query. What a backward pass has freed does
not count, so that neither accumulation nor chunks come near."""

FORGOTTEN = (
    f"{FORWARDS_BEFORE_WARNING} forwards wait for kernels.aux_loss(model) and keep what their backward needs: add it "
    "to the loss of each step, evaluate under torch.no_grad(), or set balance_coef, z_coef and importance_coef to 0"
)
TOO_LATE = (
    "kernels.aux_loss(model) was called after the backward of forwards that it sums up: their share of its value is "
    "a constant, without gradient. For the gradient, add it to the loss before each backward"
)


class Part:
    """The sums of one forward, whose gradient can still be taken, and the part before it. The first one is empty.

    A chain, and no list: a compiled forward would be compiled again for each length of a list.
    """

    def __init__(self, sums_L: Tensor | None = None, before: Any = None):
        self.sums_L, self.before = sums_L, before


def _is_freed(sums_L: Tensor) -> bool:
    """Whether a backward pass has gone through the forward, and left nothing for another one."""
    try:
        sums_L.grad_fn._raw_saved_tensors  # type: ignore[union-attr] # noqa: B018
    except RuntimeError:
        return True
    except AttributeError:  # a node of torch's own, which tells nothing
        pass
    return False


class RouterSums:
    """One layer's sums since the last `aux_loss`: a part for each forward that has a gradient, and a tensor without.

    They change only by assignment, and what is assigned always has the same type: a compiled forward then sees one kind
    of input, whether it is the first since `aux_loss` or the hundredth.
    """

    def __init__(self, num_experts: int):
        self.num_experts = num_experts
        self.said: set[str] = set()
        self._lock = threading.RLock()
        self.clear(torch.zeros(0))

    def _alone(self) -> AbstractContextManager:
        """Threads may share a layer, so each change is one step; but a lock cannot be compiled."""
        return nullcontext() if torch.compiler.is_compiling() else self._lock

    def clear(self, like: Tensor) -> None:
        dtype = torch.promote_types(like.dtype, torch.float32)
        size = 2 * self.num_experts + 2
        with self._alone():
            self.settled_L = torch.zeros(size, dtype=dtype, device=like.device)
            self.unbalanced_E = torch.zeros(self.num_experts, dtype=dtype, device=like.device)
            self._start()

    def _start(self) -> None:
        self.newest, self.kept, self.freed = Part(), 0, 0

    def follow(self, like: Tensor) -> None:
        """Weights that were assigned or moved have brought their device. What is counted already stays where it is."""
        if self.settled_L.device != like.device and (self.settled_L.is_meta or self._is_empty()):
            self.clear(like)

    def _is_empty(self) -> bool:
        return self.newest.sums_L is None and not self.settled_L.any() and not self.unbalanced_E.any()

    def add(self, sums_L: Tensor, keep_graph: bool) -> None:
        if not torch.compiler.is_compiling():
            with self._lock:
                self._add(sums_L, keep_graph)
        else:  # within a checkpoint, compilers have to be asked for an assignment, and take only what they made there
            torch._dynamo.utils._disable_side_effect_safety_checks_for_current_subtracer(
                self._add, sums_L.clone(), keep_graph
            )

    def _add(self, sums_L: Tensor, keep_graph: bool) -> None:
        self.follow(sums_L)
        sums_L = sums_L.to(self.settled_L.device)  # of a replica or of weights that are moved for each forward
        if not (keep_graph and sums_L.requires_grad):
            self.settled_L = self.settled_L + sums_L.detach()
            return
        if not torch.compiler.is_compiling():
            self._count_kept()
        self.newest = Part(sums_L, self.newest)

    def _count_kept(self) -> None:
        newest = self.newest.sums_L
        # Where the newest is never sent back, those before it may have been: now and then they are looked at, too.
        looks = self.kept % 16 == 15 or self.kept + 1 == FORWARDS_BEFORE_WARNING
        if looks or (newest is not None and _is_freed(newest)):
            self._settle_freed()
        self.kept += 1
        if self.kept == FORWARDS_BEFORE_WARNING:
            self._say_once(FORGOTTEN)

    def _parts(self) -> list[Tensor]:
        """The oldest first."""
        parts, part = [], self.newest
        while part.sums_L is not None:
            parts.append(part.sums_L)
            part = part.before
        return parts[::-1]

    def _settle_freed(self) -> None:
        """What can no longer be differentiated stays in the sums, as a constant."""
        parts = self._parts()
        self.newest, self.kept = Part(), 0
        for sums_L in parts:
            if _is_freed(sums_L):
                self.settled_L, self.freed = self.settled_L + sums_L.detach(), self.freed + 1
            else:
                self.newest, self.kept = Part(sums_L, self.newest), self.kept + 1

    def _total(self) -> Tensor:
        """It requires grad, whatever is in it: of several ranks, each takes part in the backward of their sum."""
        is_compiling = torch.compiler.is_compiling()
        if not is_compiling:
            self._settle_freed()
        total_L = self.settled_L
        for sums_L in self._parts():
            total_L = total_L + sums_L
        return total_L if is_compiling or total_L.requires_grad else total_L.clone().requires_grad_()

    def take(self) -> Tensor:
        """The total, which starts again; its counts stay for `update_balance`."""
        with self._alone():
            total_L = self._total()
            if not torch.compiler.is_compiling() and self.freed and torch.is_grad_enabled():
                self._say_once(TOO_LATE)
            self.unbalanced_E = self.unbalanced_E + total_L[: self.num_experts].detach()
            self.settled_L = torch.zeros_like(self.settled_L)
            self._start()
        return total_L

    def take_counts(self) -> Tensor:
        """Tokens of each expert since the last call."""
        with self._alone():
            counts_E = self.unbalanced_E + self._total()[: self.num_experts].detach()
            self.clear(self.settled_L)
        return counts_E

    def _say_once(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            warnings.warn(text, stacklevel=2)

    def __deepcopy__(self, memo: dict) -> RouterSums:  # a copied or saved layer starts with no statistics
        copy = RouterSums(self.num_experts)
        copy.clear(self.settled_L)
        return copy

    def __reduce__(self) -> tuple:
        return RouterSums, (self.num_experts,)


@contextmanager
def collect_without_grad() -> Iterator[None]:
    """Forwards under `torch.no_grad()` count too: the first pass of GradCache, before `router_totals`."""
    global _collecting
    previous, _collecting = _collecting, True
    try:
        yield
    finally:
        _collecting = previous


def counts_now() -> bool:
    """Whether a forward that runs now adds to the sums: not in inference, and not when it is a recomputation."""
    if not torch.is_grad_enabled():
        return _collecting
    return torch.compiler.is_compiling() or not _recomputing()


def _recomputing() -> bool:
    """Whether a backward pass is running this forward again, for gradient checkpointing."""
    if torch._C._current_graph_task_id() == -1:
        return False
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
        raise RuntimeError(
            "reentrant checkpointing records no gradient in its first forward, so the router's losses would be lost: "
            "call torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        )
    return True
