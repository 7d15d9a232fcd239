"""The losses of the router, from the sums that its layers keep (`sums.py`).

The losses are functions of the totals over batches, chunks and ranks: a mean of per-chunk losses would be another loss.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kernels import validation
from kernels.layers import RoutedLayer, moe_layers


def router_totals(model: nn.Module, group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """Takes every layer's sums, added over the ranks, without gradient: the `totals` of `aux_loss`."""
    with torch.no_grad():
        return [_all_reduce(_take(layer).detach(), group) for layer in moe_layers(model).values()]


def aux_loss(model: nn.Module, group: dist.ProcessGroup | None = None, *, totals: list[Tensor] | None = None) -> Tensor:
    """The losses of all routers in a model, over every forward since the last call; takes the sums.

    For each layer, in fp32, with f_e the share of expert e in the slots and p_e its mean probability:

    1. balance_coef * E * sum_e f_e p_e          Switch Transformer's loss: 1 when balanced, before the coefficient
    2. z_coef * mean over tokens of logsumexp²    keeps the logits small
    3. importance_coef * CV² of the p_e           the squared coefficient of variation: 0 when balanced

    Add it to the loss once a step; with all coefficients at 0 there is no need to. The sums are added over the ranks
    of `group` (None: all, where torch.distributed runs), so every rank returns the loss of the whole batch, and the
    mean of gradients that DDP takes is its gradient.

    What a backward pass has freed before the call, as where a step went without this loss, counts in the value alone:
    the gradient is that with respect to the forwards that can still be differentiated. A compiled function cannot see
    what was freed: one that has this call in it has to make it at every step.

    GradCache: run the first pass under `collect_without_grad`, take `router_totals`, and give them as `totals` after
    each chunk of the second pass: the value is that of the totals, and the chunks' gradients add up to its gradient.
    """
    layers = list(moe_layers(model).values())
    if totals is not None:
        _check_totals(totals, layers)
    losses = []
    for index, layer in enumerate(layers):
        own_L = _take(layer)
        if totals is None:
            sums_L = _all_reduce(own_L, group)
        else:  # the value of the totals, the gradient of this chunk and of this rank
            sums_L = totals[index] + _scale_gradient(own_L - own_L.detach(), group)
        losses.append(_layer_loss(sums_L, layer))
    if not losses:
        return torch.zeros(())
    return torch.stack([loss.to(losses[0].device) for loss in losses]).sum()


def _take(layer: RoutedLayer) -> Tensor:
    layer.sums.follow(layer.router.weight)
    return layer.sums.take()


def _check_totals(totals: list[Tensor], layers: list[RoutedLayer]) -> None:
    expected = f"totals must be what router_totals(model) gives, a tensor for each of {len(layers)} layers"
    if not isinstance(totals, list | tuple):
        raise TypeError(f"{expected}; got a {type(totals).__name__}")
    if len(totals) != len(layers):
        raise ValueError(f"{expected}; got {len(totals)}")
    for index, (total_L, layer) in enumerate(zip(totals, layers)):
        validation.check_shape(f"totals[{index}]", total_L, (2 * layer.num_experts + 2,))
        validation.check_device(f"totals[{index}]", total_L, "its layer is", layer.router.weight.device)


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
            layer.sums.follow(bias_E)
            counts_E = _all_reduce(layer.sums.take_counts(), group)
            bias_E += (rate * (counts_E.mean() - counts_E).sign()).to(bias_E)


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
