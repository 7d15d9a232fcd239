"""One case of a layer: its sizes, its inputs, and who takes part."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import kernels
from bench import peers
from bench.machine import name_of
from bench.record import BASELINE, LIMIT, OURS
from kernels import dispatch
from kernels.layers import RoutedLayer

MARGIN = 1e-3
"""Between the last expert that is chosen and the first that is not: no two contenders may see another winner."""

GATHERED_LIMIT = {"cpu": 2**28, "cuda": 2**34}
"""Bytes of weights that batched_mm may copy, one set a slot."""


@dataclass(frozen=True)
class LayerCase:
    layer: str = "MoE"
    tokens: int = 4096
    hidden: int = 384
    ffn: int = 1536
    experts: int = 8
    top_k: int | str = 2
    dtype: torch.dtype = torch.bfloat16
    activation: str = "gelu"
    bias: bool = True
    skewed: bool = False
    backward: bool = False
    headline: bool = False

    def __str__(self) -> str:
        extras = [] if self.activation == ("gelu" if self.layer == "MoE" else "relu") else [self.activation]
        extras += ["skewed"] * self.skewed + ["forward+backward" if self.backward else "forward"]
        sizes = f"T={self.tokens} H={self.hidden} F={self.ffn} E={self.experts} k={self.top_k}"
        return f"{self.layer} {sizes} {name_of(self.dtype)} {' '.join(extras)}"

    def settings(self, device: torch.device) -> dict[str, Any]:
        return asdict(self) | {"dtype": name_of(self.dtype), "backend": dispatch.pick(device, self.dtype).name}

    @property
    def active(self) -> int:
        """Experts that serve a token."""
        return self.experts if self.top_k == "all" else int(self.top_k)

    @property
    def flops(self) -> float:
        """Of the chosen experts' matrix products; the gate's are not counted."""
        matrices = 3 if self.activation in peers.GATED else 2
        return 2.0 * matrices * self.tokens * self.active * self.hidden * self.ffn * (3 if self.backward else 1)

    def shrunk(self) -> "LayerCase":
        """As it is in a smoke test. Rows stay aligned to 16 bytes, which torch's grouped_mm demands."""
        return replace(
            self,
            tokens=min(self.tokens, 33),
            hidden=max(16, self.hidden // 24 // 8 * 8),
            ffn=max(16, self.ffn // 24 // 8 * 8),
            experts=min(self.experts, 6),
        )

    def build(self, device: torch.device) -> RoutedLayer:
        """Unit-variance outputs from unit-variance inputs. Feature 0 is always 1: there skewed routing has its bias."""
        settings = dict(num_experts=self.experts, top_k=self.top_k, activation=self.activation, bias=self.bias)
        if self.layer == "SBMoE":
            layer = kernels.SBMoE(self.hidden, self.ffn, noise=False, **settings)
        else:
            layer = kernels.MoE(self.hidden, self.ffn, **settings)
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                parameter.normal_(std=0.3 if name.endswith("bias") else parameter.shape[-1] ** -0.5)
            if self.skewed:
                layer.router.weight[:, 0] = -1.5 * torch.arange(1, self.experts + 1).log()
        return layer.to(device, self.dtype)

    def inputs(self, layer: RoutedLayer) -> tuple[Tensor, Tensor]:
        """-> x and the gradient of y"""
        like = layer.experts.up_weight
        x_TH = torch.randn(self.tokens, self.hidden, device=like.device).to(like.dtype)
        x_TH[:, 0] = 1
        gate = peers.gate_of(layer)
        while self.active < self.experts:
            ranked_TE = gate.logits(x_TH).sort(-1, descending=True).values
            close = ranked_TE[:, self.active - 1] - ranked_TE[:, self.active] < MARGIN
            if not close.any():
                break
            x_TH[close, 1:] = torch.randn(int(close.sum()), self.hidden - 1, device=like.device).to(like.dtype)
        return x_TH, torch.randn(self.tokens, self.hidden, device=like.device).to(like.dtype)


def contenders(
    case: LayerCase, layer: RoutedLayer, only: Sequence[str] | None = None
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """-> who takes part, with the layer's weights, and why the others do not"""
    device = layer.experts.up_weight.device
    makers: dict[str, Callable[[RoutedLayer], nn.Module]] = {OURS: lambda layer: layer, BASELINE: peers.loop}
    skipped: dict[str, str] = {}
    if case.layer == "SBMoE":
        makers["every expert"] = peers.every_expert
    for implementation in ("eager", "batched_mm", "grouped_mm"):
        makers[f"hf {implementation}"] = partial(peers.hugging_face, implementation=implementation)
    if device.type == "cuda" and case.activation == "swiglu" and not case.bias:
        makers["liger"] = peers.liger
    else:
        skipped["liger"] = "has swiglu experts without biases, on a GPU"
    makers[LIMIT] = peers.dense

    gathered = case.tokens * case.active * (layer.experts.up_weight[0].nbytes + layer.experts.down_weight[0].nbytes)
    if gathered > GATHERED_LIMIT[device.type]:
        skipped["hf batched_mm"] = f"would copy {gathered / 2**30:.1f} GiB of weights"
    for prefix, package in (("hf", "transformers.integrations.moe"), ("liger", "liger_kernel.ops.fused_moe")):
        theirs = [name for name in makers if name.startswith(prefix)]
        if theirs and not importable(package):
            skipped |= dict.fromkeys(theirs, f"{package} is not importable")
    wanted = [name for name in makers if name not in skipped and (only is None or name in only)]
    return {name: makers[name](layer) for name in wanted}, skipped


def importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except Exception:  # whatever a parent package dies of, it cannot be used here
        return False


def step(module: nn.Module, x: Tensor, grad_y: Tensor | None) -> Callable[[], Tensor]:
    """-> what is timed: a forward without gradients, or a forward and the backward of everything"""
    parameters = list(module.parameters())
    sums = getattr(module, "sums", None)
    x = x.detach().requires_grad_(grad_y is not None)

    def forward() -> Tensor:
        with torch.no_grad():
            return module(x)

    def forward_and_backward() -> Tensor:
        for tensor in (x, *parameters):
            tensor.grad = None
        y = module(x)
        y.backward(grad_y)
        if sums is not None:
            sums.take()  # no peer has a router loss: ours is not asked for its own
        return x.grad

    return forward if grad_y is None else forward_and_backward
