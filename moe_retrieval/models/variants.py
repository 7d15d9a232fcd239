"""The variants of a retriever: where its experts sit, and the controls without which no table says that experts help.

    dense        the encoder as it is
    sb-moe       one layer of experts on the pooled embedding (kernels.SBMoE): the pooled layer
    moe          experts in the place of several feed-forward parts (kernels.MoE)
    dense-wide   one of the two, with one dense layer of as many parameters in the place of the experts
    random       one of the two, its router replaced by a fixed hash of the tokens

Every variant but a scratch one starts as the backbone: the pooled layer is the identity, replaced feed-forward parts
compute what they computed before.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import kernels
from kernels import upcycling
from kernels.layers import RoutedLayer
from moe_retrieval.errors import InputError
from moe_retrieval.models.encoder import EncoderShape, FeedForward
from moe_retrieval.models.hash_experts import HashExperts
from moe_retrieval.models.typed import check_types
from moe_retrieval.models.undrawn import sizes_alone

VARIANTS = ("dense", "sb-moe", "moe", "dense-wide", "random")
ROUTED = ("sb-moe", "moe")
MOST_EXPERTS = 65536
"""Each costs time when a layer is made: a number from a file must not cost hours."""


@dataclass(frozen=True)
class ExpertSettings:
    """How many experts there are, how they are chosen, and where they sit. Defaults are those of `sb-moe`."""

    num_experts: int = 6
    top_k: int | str = 1
    expert_size: int | None = None
    """Width inside an expert: None is half of the embedding for sb-moe, the backbone's own for moe."""
    layers: tuple[int, ...] = ()
    """moe: the blocks of the encoder that get experts."""
    router: str = "softmax"
    gate: str = "mlp"
    noise: bool = True
    combine: str = "residual"
    renormalize: bool = False
    activation: str = "relu"
    balance_coef: float = 0.01
    z_coef: float = 0.0

    def __post_init__(self) -> None:
        check_types(self, "experts")
        if self.num_experts > MOST_EXPERTS:
            raise InputError(f"num_experts must be at most {MOST_EXPERTS}, got {self.num_experts}")

    def router_arguments(self) -> dict[str, Any]:
        names = ("num_experts", "top_k", "activation", "router", "renormalize", "gate", "noise", "balance_coef")
        return {name: getattr(self, name) for name in (*names, "z_coef")}


def default_experts(family: str, shape: EncoderShape) -> ExpertSettings:
    """What "sb-moe" and "moe" are by default: the paper's layer; every second block, top-2 of 8."""
    if family == "sb-moe":
        return ExpertSettings()
    every_second = tuple(range(1, shape.num_layers, 2)) or (0,)
    return ExpertSettings(
        8, top_k=2, layers=every_second, gate="linear", noise=False, renormalize=True, activation=shape.activation
    )


def parse_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """ "1,3,5", "all", or "every-2" (the last of each two) -> indices of blocks.

    >>> parse_layers("every-2", 6)
    (1, 3, 5)
    """
    if text == "all":
        return tuple(range(num_layers))
    head, _, step = text.partition("every-")
    if not head and step.isdigit() and int(step) > 0:
        layers = tuple(range(int(step) - 1, num_layers, int(step)))
    else:
        try:
            layers = tuple(sorted({int(part) for part in text.split(",")}))
        except ValueError:
            raise InputError(f"layers must be like 1,3,5 or every-2 or all, got {text!r}") from None
    if not layers or layers[0] < 0 or layers[-1] >= num_layers:
        raise InputError(f"layers must name some of the blocks 0 to {num_layers - 1}, got {text!r}")
    return layers


# The pooled layer.


def make_pooled_layer(variant: str, family: str, experts: ExpertSettings, width: int) -> nn.Module | None:
    """What follows the pooling, where embeddings are `width` wide; None if nothing does."""
    if variant == "dense" or family != "sb-moe":
        return None
    if variant == "random":
        return _hash_experts(experts, width, experts.expert_size or max(1, width // 2), salt=0, residual=True)
    with sizes_alone() if variant == "dense-wide" else nullcontext():  # the first is only counted
        layer = kernels.SBMoE(width, experts.expert_size, combine=experts.combine, **experts.router_arguments())
    if variant == "dense-wide":
        return WideLayer(width, max(1, round((_parameters(layer) - width) / (2 * width + 1))), experts.activation)
    return layer


class WideLayer(nn.Module):
    """x + down(activation(up(x))), the identity at the start: the control of sb-moe with as many parameters."""

    def __init__(self, hidden_size: int, ffn_size: int, activation: str):
        super().__init__()
        self.ffn = FeedForward(hidden_size, ffn_size, activation)
        nn.init.zeros_(self.ffn.down.weight)
        nn.init.zeros_(self.ffn.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)


def _hash_experts(experts: ExpertSettings, width: int, size: int, salt: int, residual: bool) -> HashExperts:
    return HashExperts(width, size, experts.num_experts, experts.top_k, experts.activation, salt, residual)


# Experts inside the encoder.


def replace_ffn(block: nn.Module, index: int, variant: str, experts: ExpertSettings, shape: EncoderShape) -> None:
    """Puts what the variant has into the place of the feed-forward part of block `index` of an encoder."""
    hidden, size = shape.hidden_size, experts.expert_size or shape.ffn_size
    if variant == "random":
        block.ffn = _hash_experts(experts, hidden, size, salt=index + 1, residual=False)
        return
    with sizes_alone() if variant == "dense-wide" else nullcontext():  # the first is only counted
        layer = kernels.MoE(hidden, size, **experts.router_arguments())
    if variant == "dense-wide":
        width = max(1, round((_parameters(layer) - hidden) / (2 * hidden + 1)))
        block.ffn = FeedForward(hidden, width, shape.activation)
    else:
        block.ffn = layer


def upcycle(ffn: object, dense: FeedForward) -> None:
    """Makes a module of `replace_ffn` compute what a dense feed-forward part computes."""
    with torch.no_grad():
        if isinstance(ffn, FeedForward):
            width = dense.up.out_features
            ffn.up.weight[:width], ffn.up.bias[:width] = dense.up.weight, dense.up.bias
            ffn.down.weight.zero_()
            ffn.down.weight[:, :width] = dense.down.weight
            ffn.down.bias.copy_(dense.down.bias)
            return
        assert isinstance(ffn, RoutedLayer | HashExperts)
        upcycling.copy_dense(ffn.experts, dense.up, dense.down)


def redraw(ffn: object, share: float) -> None:
    """Of experts that `upcycle` made copies, a share of the inner units becomes their own."""
    if isinstance(ffn, RoutedLayer | HashExperts):
        upcycling.redraw_units(ffn.experts, share)


def check_upcycling(experts: ExpertSettings, shape: EncoderShape) -> ExpertSettings:
    """Raises where a mixture of copies would not be the copy; -> the settings with the backbone's width."""
    if experts.expert_size not in (None, shape.ffn_size):
        raise InputError(
            f"expert_size must be the backbone's {shape.ffn_size} for experts that start as its feed-forward part, "
            f"got {experts.expert_size}"
        )
    if experts.activation != shape.activation:
        raise InputError(f"activation must be the backbone's {shape.activation!r}, got {experts.activation!r}")
    try:
        upcycling.check_weights_sum_to_1(experts.num_experts, experts.top_k, experts.router, experts.renormalize)
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from error
    return replace(experts, expert_size=shape.ffn_size)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
