"""The layers: `MoE` replaces the feed-forward part of a Transformer's block, `SBMoE` follows an encoder's pooling."""

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import autocast, functional, ops, validation
from kernels.activations import width_of
from kernels.parameters import buffer, part, reader, weight_and_bias
from kernels.records import ExpertWeights, GateWeights, Rule, Tokens, zero_masked
from kernels.reference import wide, wide_dtype
from kernels.routing import ALL, Routing
from kernels.sums import RouterSums, counts_now

Device = torch.device | str | int | None


class Router(nn.Module):
    """Scores the experts for a token: a linear map, or an mlp with one hidden layer (relu), in fp32.

    With noise, training adds n * softplus(x W + b) to each logit, n drawn from a normal distribution: a learned spread
    that lets tokens try other experts.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        gate: str,
        noise: bool,
        balance_bias: bool,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        linear = partial(nn.Linear, device=device, dtype=dtype)
        self.hidden = linear(hidden_size, max(1, hidden_size // 2)) if gate == "mlp" else None
        last = linear(self.hidden.out_features if self.hidden else hidden_size, num_experts, bias=gate == "mlp")
        self.weight = last.weight
        self.register_parameter("bias", last.bias)  # also where it is None: what is registered is found at once
        self.noise = linear(hidden_size, num_experts) if noise else None
        self.balance_bias: Tensor | None
        zeros_E = wide(torch.zeros(num_experts, device=device, dtype=dtype)) if balance_bias else None
        self.register_buffer("balance_bias", zeros_E)

    def __setattr__(self, name: str, value: Any) -> None:
        """A balance bias is kept in fp32 at least: 16 bits lose a step of `update_balance`. Loaders assign it here."""
        super().__setattr__(name, wide(value) if name == "balance_bias" and isinstance(value, Tensor) else value)

    def _apply(self, fn, recurse=True):  # .to(), .half(), .bfloat16()
        before = self.balance_bias
        super()._apply(fn, recurse)
        after = self.balance_bias
        if before is not None and after is not None and after.dtype != wide_dtype(after.dtype):
            self.balance_bias = before.to(after.device, wide_dtype(after.dtype))  # not what 16 bits have left of it
        return self

    def draw_noise(self, x_TH: Tensor, mask_T: Tensor | None) -> Tensor | None:
        """What a forward in training adds to the logits."""
        if self.noise is None:
            return None
        x_TH = zero_masked(x_TH, mask_T)
        dtype = wide_dtype(self.noise.weight.dtype)
        with autocast.off(x_TH.device.type):
            spread_TE = F.softplus(F.linear(x_TH.to(dtype), self.noise.weight.to(dtype), self.noise.bias.to(dtype)))
        return spread_TE * torch.randn_like(spread_TE)


class Experts(nn.Module):
    """E two-layer perceptrons, their `nn.Linear`s stacked."""

    def __init__(
        self,
        hidden_size: int,
        expert_size: int,
        num_experts: int,
        activation: str,
        bias: bool,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        width = width_of(expert_size, activation)

        def stack(inputs: int, outputs: int) -> tuple[nn.Parameter, nn.Parameter | None]:
            weight = torch.empty(num_experts, outputs, inputs, device=device, dtype=dtype)
            biases = torch.empty(num_experts, outputs, device=device, dtype=dtype) if bias else None
            for expert in range(num_experts):  # copied one by one: to stack on the meta device imports torch's compiler
                linear = nn.Linear(inputs, outputs, bias, device, dtype)
                weight[expert].copy_(linear.weight.detach())
                if biases is not None:
                    biases[expert].copy_(linear.bias.detach())
            return nn.Parameter(weight), None if biases is None else nn.Parameter(biases)

        self.up_weight, self.up_bias = stack(hidden_size, width)
        self.down_weight, self.down_bias = stack(expert_size, hidden_size)


_read_experts = reader("up_weight", "up_bias", "down_weight", "down_bias")


class RouterSettings(NamedTuple):
    """How a layer routes."""

    num_experts: int
    top_k: int | str
    router: str
    renormalize: bool
    gate: str
    noise: bool


class LossCoefficients(NamedTuple):
    """What `aux_loss` multiplies the losses of a layer with."""

    balance: float
    z: float
    importance: float


def _coefficient(field: str) -> property:
    """One of the `LossCoefficients` of a layer; can be changed at any time."""

    def read(layer: "RoutedLayer") -> float:
        return getattr(layer._coefficients, field)

    def change(layer: "RoutedLayer", value: float) -> None:
        layer._set_coefficients(layer._coefficients._replace(**{field: value}))

    return property(read, change)


class RoutedLayer(nn.Module):
    """What `MoE` and `SBMoE` share: a router, experts, and the statistics of their meeting."""

    def __init__(
        self,
        hidden_size: int,
        expert_size: int,
        routing: RouterSettings,
        activation: str,
        bias: bool,
        coefficients: LossCoefficients,
        device: Device,
        dtype: torch.dtype | None,
    ):
        super().__init__()
        num_experts, top_k, router, renormalize, gate, noise = routing
        validation.check_choices(activation=activation, router=router, gate=gate)
        validation.check_positive(hidden_size=hidden_size, expert_size=expert_size, num_experts=num_experts)
        self.hidden_size, self.expert_size, self.num_experts = hidden_size, expert_size, num_experts
        self.top_k = top_k
        self.activation, self.router_kind, self.renormalize, self.gate = activation, router, renormalize, gate
        self._set_coefficients(coefficients)
        self.router = Router(hidden_size, num_experts, gate, noise, router == "sigmoid", device, dtype)
        self.experts = Experts(hidden_size, expert_size, num_experts, activation, bias, device, dtype)
        self.sums = RouterSums(num_experts)
        self.sums.clear(self.router.weight)
        self.recorder: list[Routing] | None = None

    @property
    def top_k(self) -> int | str:
        """Experts a token; can be changed at any time."""
        return self._top_k

    @top_k.setter
    def top_k(self, top_k: int | str) -> None:
        self.number_chosen = validation.check_top_k(top_k, self.num_experts)
        self._top_k = top_k

    def gate_weights(self) -> GateWeights:
        router = part(self, "router")
        hidden = part(router, "hidden")
        first = (None, None) if hidden is None else weight_and_bias(hidden)
        return GateWeights._make((*first, *weight_and_bias(router), buffer(router, "balance_bias")))

    def expert_weights(self) -> ExpertWeights:
        return ExpertWeights._make(_read_experts(part(self, "experts")))

    def rule(self) -> Rule:
        return Rule(self.number_chosen, self.router_kind, self.renormalize)

    def _mix(self, x: Tensor, mask: Tensor | None, residual: bool) -> Tensor:
        """The weighted sum of the experts' outputs, on x if there is a residual; counts and records the routing."""
        experts = self.expert_weights()
        x_TH = validation.check_input(x, self.hidden_size, experts.up_weight_EUH)
        mask_T = validation.check_mask(mask, x)
        gate = self.gate_weights()
        validation.check_double("router.weight", gate.weight_EG, "the experts are", experts.up_weight_EUH)
        tokens = Tokens(x_TH, mask_T, self.router.draw_noise(x_TH, mask_T) if self.training else None)
        rule, counts = self.rule(), counts_now() and ops.has_numbers(x_TH)
        y_TH, sums_L, routing = functional.run_moe(tokens, gate, experts, rule, self.activation, residual, counts)
        if counts and sums_L is not None:
            self.sums.add(sums_L, self.has_losses)
        if self.recorder is not None:
            self.recorder.append(routing if rule.top_k != ALL else functional.with_every_expert(routing, mask_T))
        return y_TH.view(x.shape)

    def _set_coefficients(self, coefficients: LossCoefficients) -> None:
        """A forward asks for `has_losses` alone: a compiler would make inputs of the numbers."""
        self._coefficients, self.has_losses = coefficients, any(coefficients)

    balance_coef, z_coef, importance_coef = map(_coefficient, LossCoefficients._fields)

    def _apply(self, fn, recurse=True):  # .to(), .cuda(), .double(): the statistics start again there
        super()._apply(fn, recurse)
        self.sums.clear(self.router.weight)
        return self

    def extra_repr(self) -> str:
        return (
            f"{self.hidden_size}, {self.expert_size}, num_experts={self.num_experts}, top_k={self.top_k!r}, "
            f"activation={self.activation!r}, router={self.router_kind!r}, renormalize={self.renormalize}, "
            f"gate={self.gate!r}"
        )


class MoE(RoutedLayer):
    """Experts in the place of a feed-forward part: y = sum of the top_k experts' outputs, weighted by the router.

    - `activation`: gelu, gelu_tanh, relu, silu, or gated swiglu, geglu.
    - `router`: softmax (over all experts, then the best), topk_softmax (over the chosen), or sigmoid (balanced by a
      selection bias and `update_balance`, if you like, instead of a loss).
    - `top_k`: 1 to num_experts, or "all". `renormalize`: the chosen weights sum to 1.
    - `gate`: a linear router, or an "mlp". `noise`: trained noise on its logits (in training).
    - `balance_coef`, `z_coef`, `importance_coef`: what `aux_loss` multiplies this layer's losses with.
    - `device`, `dtype`: of the parameters, as in torch's layers.

    >>> import torch, kernels
    >>> layer = kernels.MoE(384, 1536, num_experts=8, top_k=2)
    >>> y = layer(torch.randn(4, 128, 384), mask=torch.ones(4, 128, dtype=torch.bool))
    >>> loss = y.square().mean() + kernels.aux_loss(layer)
    >>> y.shape
    torch.Size([4, 128, 384])
    """

    def __init__(
        self,
        hidden_size: int,
        ffn_size: int,
        *,
        num_experts: int,
        top_k: int | str,
        activation: str = "gelu",
        router: str = "softmax",
        renormalize: bool = True,
        gate: str = "linear",
        noise: bool = False,
        bias: bool = True,
        balance_coef: float = 0.01,
        z_coef: float = 0.0,
        importance_coef: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        routing = RouterSettings(num_experts, top_k, router, renormalize, gate, noise)
        coefficients = LossCoefficients(balance_coef, z_coef, importance_coef)
        super().__init__(hidden_size, ffn_size, routing, activation, bias, coefficients, device, dtype)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [..., H] -> y like x. `mask` (bool or int, x's leading shape): where it is false, no routing and y = 0."""
        return self._mix(x, mask, residual=False)


class SBMoE(RoutedLayer):
    """A layer of experts on a pooled embedding (arXiv 2412.11864), shared by queries and documents.

    `combine="residual"`: y = x + mix. The down weights start at zero, so the layer starts as the identity and a
    pretrained encoder keeps its quality. `combine="normalized"`: y = x + mix / |mix|, as in the paper's code, which
    starts from ordinary weights; there top-1 leaves the gate without a gradient from the output, because the norm
    cancels its weight. `expert_size` None is hidden_size // 2. Other arguments as in `MoE`.

    >>> import torch, kernels
    >>> layer, embedding = kernels.SBMoE(384), torch.randn(2, 384)
    >>> torch.equal(layer(embedding), embedding)
    True
    """

    def __init__(
        self,
        hidden_size: int,
        expert_size: int | None = None,
        *,
        num_experts: int = 6,
        top_k: int | str = 1,
        activation: str = "relu",
        router: str = "softmax",
        renormalize: bool = False,
        gate: str = "mlp",
        noise: bool = True,
        bias: bool = True,
        combine: str = "residual",
        balance_coef: float = 0.01,
        z_coef: float = 0.0,
        importance_coef: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        validation.check_choices(combine=combine)
        if expert_size is None:
            validation.check_positive(hidden_size=hidden_size)
            expert_size = max(1, hidden_size // 2)
        routing = RouterSettings(num_experts, top_k, router, renormalize, gate, noise)
        coefficients = LossCoefficients(balance_coef, z_coef, importance_coef)
        super().__init__(hidden_size, expert_size, routing, activation, bias, coefficients, device, dtype)
        self.combine = combine
        if combine == "residual":
            nn.init.zeros_(self.experts.down_weight)
            if self.experts.down_bias is not None:
                nn.init.zeros_(self.experts.down_bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [..., H] -> y like x. `mask` (bool or int, x's leading shape): where it is false, no routing and y = 0."""
        if self.combine == "residual":
            return self._mix(x, mask, residual=True)
        mix = F.normalize(self._mix(x, mask, residual=False), dim=-1)
        return mix + (x if mask is None else torch.where(mask[..., None] != 0, x, 0))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, combine={self.combine!r}"


def moe_layers(model: nn.Module) -> dict[str, RoutedLayer]:
    """The layers of this package inside a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, RoutedLayer)}
