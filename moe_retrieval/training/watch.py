"""An eye on the gate and the loss: what goes wrong with mixtures of experts, and what then helps.

collapse      a few experts take nearly every token
redundancy    the experts compute the same
instability   the loss jumps, or is no number any more
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from kernels.layers import RoutedLayer
from kernels.losses import moe_layers
from kernels.reference import wide
from moe_retrieval.errors import InputError
from moe_retrieval.models.hash_experts import HashExperts

COLLAPSED = 0.9
"""Share of the slots that as many experts as a token has may take."""

ALIKE = 0.99
"""Mean cosine between the outputs of two experts."""

SPIKE = 2.0
"""A loss of this many times its running mean."""

FADING = 0.5
"""What an observation still counts at the next one: a small batch alone says little."""

ENOUGH = 100
"""Recent slots without which nothing is called a collapse."""

SAMPLE = 64
"""Tokens on which experts are compared."""

BROKEN_STEPS = 20
"""Steps in a row without a finite gradient after which a run ends."""


class Finding(NamedTuple):
    key: tuple[str, str | int]
    """What was found, and where: the same again is no news."""
    text: str


class GateWatch:
    """Observes every routed layer while `looking`."""

    def __init__(self, model: nn.Module):
        self.layers = moe_layers(model)
        self.counts: dict[str, Tensor] = {}
        self.newest: dict[str, list[float]] = {}
        """Layer -> the share of the slots that each expert had at the last look."""
        self.inputs: dict[str, Tensor] = {}

    @contextmanager
    def looking(self, model: nn.Module) -> Iterator[None]:
        """Around one step: which experts ran, and on what."""
        inputs: dict[str, Tensor] = {}

        def remember(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
                inputs.setdefault(name, arguments[0].detach()[:SAMPLE])

            return hook

        hooks = [layer.register_forward_hook(remember(name)) for name, layer in self.layers.items()]
        try:
            with kernels.record_routing(model) as log:
                yield
        finally:
            for hook in hooks:
                hook.remove()
        for name, routings in log.items():
            if name in inputs:
                counts_E = torch.stack([routing.counts_E for routing in routings]).sum(0).double().cpu()
                self.newest[name] = _shares(counts_E)
                self.counts[name] = counts_E + FADING * self.counts.get(name, 0)
                self.inputs[name] = inputs[name]

    def warnings(self, experts_had_time: bool = True) -> Iterator[Finding]:
        """`experts_had_time`: copies of one feed-forward part need steps to become different."""
        for name, counts_E in self.counts.items():
            layer, inputs = self.layers[name], self.inputs[name]
            if finding := collapse(name, layer.top_k, counts_E):
                yield finding
            if experts_had_time and (finding := redundancy(name, expert_likeness(layer, inputs))):
                yield finding

    def shares(self) -> dict[str, list[float]]:
        """Layer -> the share of the recent slots that each expert had."""
        return {name: _shares(counts_E) for name, counts_E in self.counts.items()}


def _shares(counts_E: Tensor) -> list[float]:
    return [round(share, 3) for share in (counts_E / counts_E.sum().clamp(min=1)).tolist()]


def collapse(name: str, top_k: int | str, counts_E: Tensor) -> Finding | None:
    """Whether as many experts of a layer as a token has take nearly all slots; `counts_E` is how many each has."""
    if not isinstance(top_k, int) or top_k >= len(counts_E) or counts_E.sum() < ENOUGH:
        return None
    share = (counts_E.topk(top_k).values.sum() / counts_E.sum()).item()
    if share <= COLLAPSED:
        return None
    return Finding(
        ("collapse", name),
        f"collapse: {top_k} of {len(counts_E)} experts of {name} take {share:.0%} of the tokens; raise --aux-coef, "
        "turn on --noise True, or lower --expert-lr",
    )


def redundancy(name: str, likeness: float) -> Finding | None:
    """Whether the experts of a layer compute the same, by their `expert_likeness`."""
    if likeness <= ALIKE:
        return None
    return Finding(
        ("redundancy", name),
        f"redundancy: the experts of {name} are alike (mean cosine {likeness:.3f}); raise --expert-lr, train longer, "
        "or use fewer experts",
    )


def expert_likeness(layer: RoutedLayer | HashExperts, x_TH: Tensor) -> float:
    """The mean cosine between what two experts make of the same tokens; 0 while they make nothing of them."""
    with torch.no_grad():
        unit_ETH = unit_outputs(layer, x_TH)
        total_TH = unit_ETH.sum(0)
        present_T = unit_ETH.square().sum((0, 2))  # experts with an output: a unit vector each, nothing for a zero
        pairs_T = present_T * (present_T - 1)
        cosine_T = (total_TH.square().sum(-1) - present_T) / pairs_T.clamp(min=1)
        return cosine_T.mean().item() if len(cosine_T) else 0.0


def unit_outputs(layer: RoutedLayer | HashExperts, x_TH: Tensor) -> Tensor:
    """What each expert makes of the same tokens, [E, T, H], at a length of 1; 0 where it makes nothing."""
    experts = layer.experts
    x_TH = x_TH.reshape(-1, x_TH.shape[-1]).to(experts.up_weight.dtype)
    outputs = []
    for expert in range(layer.num_experts):
        indices = torch.full((len(x_TH), 1), expert, device=x_TH.device)
        weights = torch.ones_like(indices, dtype=x_TH.dtype)
        outputs.append(
            kernels.expert_mlp(
                x_TH, indices, weights, experts.up_weight, experts.up_bias, experts.down_weight, experts.down_bias,
                activation=layer.activation,
            )
        )  # fmt: skip
    return F.normalize(wide(torch.stack(outputs)), dim=-1)


def check_weights(model: nn.Module, since: int, best: int) -> None:
    """Raises where a weight is no number any more."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise diverged(f"{name} is", since, best)


def diverged(what: str, since: int, best: int) -> InputError:
    """There is no way on: a model that computes no numbers is not kept, whatever it seems to score."""
    if since == 0:
        return InputError(f"{what} not finite before the first step: expected a backbone whose weights are numbers")
    return InputError(
        f"{what} not finite since step {since}: lower --lr and --expert-lr, lower --clip, or use --precision fp32; "
        f"the best model, of step {best}, is as it was"
    )


def skipped_to_the_end(since: int, best: int) -> Finding:
    """No step changed the model any more, but one that was validated is there."""
    return Finding(
        ("instability", "to the end"),
        f"the losses or their gradients are not finite since step {since}: those steps were skipped; the best model, "
        f"of step {best}, was validated and is measured",
    )


class LossWatch:
    """Compares each loss with the usual one."""

    def __init__(self, broken: int = 0) -> None:
        self.usual: float | None = None
        self.broken = broken
        """The newest steps that had no finite loss or gradient."""

    def warning(self, step: int, loss: float, gradient_norm: float) -> Finding | None:
        """What to say about a step, if anything; raises when there is no way on."""
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            self.broken += 1
            if self.broken == BROKEN_STEPS:
                raise InputError(
                    f"{BROKEN_STEPS} steps in a row without a finite gradient (loss {loss}): lower --lr and "
                    "--expert-lr, lower --clip, or use --precision fp32; the best model is as it was"
                )
            return Finding(
                ("instability", step),
                f"instability: step {step} has loss {loss:.4g} and a gradient of norm {gradient_norm:.4g} and was "
                "skipped; where this repeats itself, lower --lr, raise --z-coef or use --precision fp32",
            )
        self.broken = 0
        usual, self.usual = self.usual, loss if self.usual is None else 0.9 * self.usual + 0.1 * loss
        if usual is not None and loss > SPIKE * usual + 0.1:
            return Finding(
                ("instability", step),
                f"instability: step {step} has loss {loss:.4g}, usually it is {usual:.4g}; where this repeats itself, "
                "lower --lr or --clip, or raise --warmup",
            )
        return None
