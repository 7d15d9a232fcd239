"""The statistics that a layer keeps for the losses of its router.

Every MoE layer adds up, over all its forwards since the last `aux_loss`, what `reference.choose` calls a row of
partials: E counts, E probability sums, the squared log-sum-exp, tokens. Sums add up over batches, chunks and ranks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

_collecting = False


class RouterSums:
    """One layer's sums since the last `aux_loss`; the probabilities in them carry gradient.

    `total_L` always is a tensor that requires grad and changes only by assignment: a compiled forward then sees one
    kind of input, whether it is the first since `aux_loss` or the hundredth.
    """

    def __init__(self, num_experts: int):
        self.num_experts = num_experts
        self.forwards = 0
        self._lock = threading.RLock()
        self.clear(torch.zeros(0))

    def _alone(self) -> AbstractContextManager:
        """Threads may share a layer, so each change is one step; but a lock cannot be compiled."""
        return nullcontext() if torch.compiler.is_compiling() else self._lock

    def clear(self, like: Tensor) -> None:
        dtype = torch.promote_types(like.dtype, torch.float32)
        size = 2 * self.num_experts + 2
        with self._alone():
            self.total_L = torch.zeros(size, dtype=dtype, device=like.device, requires_grad=True)
            self.unbalanced_E = torch.zeros(self.num_experts, dtype=dtype, device=like.device)

    def add(self, sums_L: Tensor) -> None:
        with self._alone():
            self.total_L = self.total_L + sums_L
            if not torch.compiler.is_compiling():
                self.forwards += 1

    def take(self) -> Tensor:
        """The total, which starts again; its counts stay for `update_balance`."""
        with self._alone():
            total, self.forwards = self.total_L, 0
            self.unbalanced_E = self.unbalanced_E + total[: self.num_experts].detach()
            self.total_L = torch.zeros_like(total, requires_grad=True)
        return total

    def take_counts(self) -> Tensor:
        """Tokens of each expert since the last call."""
        with self._alone():
            counts = self.unbalanced_E + self.total_L[: self.num_experts].detach()
            self.clear(self.total_L)
        return counts

    def __deepcopy__(self, memo: dict) -> RouterSums:  # a copied or saved layer starts with no statistics
        copy = RouterSums(self.num_experts)
        copy.clear(self.total_L)
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
