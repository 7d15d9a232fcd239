"""The losses of the router, and the statistics they need.

Every MoE layer adds up, over all its forwards since the last `aux_loss`, what `reference.choose` calls a row of
partials: E counts, E probability sums, the squared log-sum-exp, tokens. Sums add up over batches, chunks and ranks,
and the losses are functions of the totals: a mean of per-chunk losses would be another loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from kernels.layers import RoutedLayer

_collecting = False


class RouterSums:
    """One layer's sums since the last `aux_loss`; the probabilities in them carry gradient.

    `total_L` always is a tensor that requires grad and changes only by assignment: a compiled forward then sees one
    kind of input, whether it is the first since `aux_loss` or the hundredth.
    """

    def __init__(self, num_experts: int):
        self.num_experts = num_experts
        self.forwards = 0
        self.clear(torch.zeros(0))

    def clear(self, like: Tensor) -> None:
        dtype = torch.promote_types(like.dtype, torch.float32)
        size = 2 * self.num_experts + 2
        self.total_L = torch.zeros(size, dtype=dtype, device=like.device, requires_grad=True)
        self.unbalanced_E = torch.zeros(self.num_experts, dtype=dtype, device=like.device)

    def add(self, sums_L: Tensor) -> None:
        self.total_L = self.total_L + sums_L
        if not torch.compiler.is_compiling():
            self.forwards += 1

    def take(self) -> Tensor:
        """The total, which starts again; its counts stay for `update_balance`."""
        total, self.forwards = self.total_L, 0
        self.unbalanced_E = self.unbalanced_E + total[: self.num_experts].detach()
        self.total_L = torch.zeros_like(total, requires_grad=True)
        return total

    def take_counts(self) -> Tensor:
        """Tokens of each expert since the last call."""
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


def moe_layers(model: nn.Module) -> dict[str, RoutedLayer]:
    """The layers of this package inside a model, by name."""
    from kernels.layers import RoutedLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, RoutedLayer)}


def router_totals(model: nn.Module, group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """Takes every layer's sums, added over the ranks, without gradient: what `aux_loss(totals=...)` wants."""
    return [_all_reduce(layer.sums.take().detach(), group) for layer in moe_layers(model).values()]


def aux_loss(model: nn.Module, group: dist.ProcessGroup | None = None, *, totals: list[Tensor] | None = None) -> Tensor:
    """The losses of all routers in a model, over every forward since the last call; takes the sums.

    For each layer, in fp32, with f_e the share of expert e in the slots and p_e its mean probability:

    1. balance_coef * E * sum_e f_e p_e          Switch Transformer's loss: 1 when balanced, before the coefficient
    2. z_coef * mean over tokens of logsumexp²    keeps the logits small
    3. importance_coef * CV² of the p_e           the squared coefficient of variation: 0 when balanced

    Add it to the loss once a step; with all coefficients at 0 there is no need to. The sums are added over the ranks
    of `group` (None: all, where torch.distributed runs), so every rank returns the loss of the whole batch, and the
    mean of gradients that DDP takes is its gradient.

    GradCache: run the first pass under `collect_without_grad`, take `router_totals`, and give them as `totals` after
    each chunk of the second pass: the value is that of the totals, and the chunks' gradients add up to its gradient.
    """
    losses = []
    for index, layer in enumerate(moe_layers(model).values()):
        own_L = layer.sums.take()
        if totals is None:
            sums_L = _all_reduce(own_L, group)
        else:  # the value of the totals, the gradient of this chunk and of this rank
            sums_L = totals[index] + _scale_gradient(own_L - own_L.detach(), group)
        losses.append(_layer_loss(sums_L, layer))
    if not losses:
        return torch.zeros(())
    return torch.stack([loss.to(losses[0].device) for loss in losses]).sum()


def _layer_loss(sums_L: Tensor, layer: RoutedLayer) -> Tensor:
    num_experts = layer.num_experts
    counts_E, probs_E, squared_lse, tokens = sums_L.split([num_experts, num_experts, 1, 1])
    tokens = tokens.detach().clamp(min=1)
    counts_E = counts_E.detach()
    loss = sums_L.new_zeros(())
    if layer.balance_coef:
        share_E = counts_E / counts_E.sum().clamp(min=1)
        loss = loss + layer.balance_coef * num_experts * (share_E * probs_E).sum() / tokens[0]
    if layer.z_coef:
        loss = loss + layer.z_coef * squared_lse[0] / tokens[0]
    if layer.importance_coef:
        mean = (probs_E / tokens).mean()
        variance = (probs_E / tokens - mean).square().mean()
        loss = loss + layer.importance_coef * variance / mean.square().clamp(min=1e-20)
    return loss


def update_balance(model: nn.Module, group: dist.ProcessGroup | None = None, *, rate: float = 1e-3) -> None:
    """Loss-free balancing (sigmoid routers): moves each expert's selection bias by `rate` towards an even load.

    Call after `optimizer.step()`: an expert with more tokens than the mean since the last call becomes less likely
    to be chosen, one with fewer more likely. Its weight in the output does not change.
    """
    for layer in moe_layers(model).values():
        bias_E = layer.router.balance_bias
        if bias_E is not None:
            counts_E = _all_reduce(layer.sums.take_counts(), group)
            bias_E += (rate * (counts_E.mean() - counts_E).sign()).to(bias_E.dtype)


class _AllReduceSum(torch.autograd.Function):
    """A sum over ranks whose gradient is summed over ranks: DDP divides by their number afterwards."""

    @staticmethod
    def forward(ctx, tensor, group):
        ctx.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


def _all_reduce(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return tensor
    return _AllReduceSum.apply(tensor, group)


def _scale_gradient(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """As in `_AllReduceSum`, where every rank's loss is the same: the sum of W equal gradients. tensor is zero."""
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    return tensor * dist.get_world_size(group)
