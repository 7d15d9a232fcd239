"""One case of a layer: its sizes, its inputs, and the call that is timed."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import kernels
from bench.contenders.ffn import GATED
from bench.contenders.gate import gate_of
from bench.contenders.our_layer import Layer, backend, drop_statistics
from bench.harness.machine import name_of

MARGIN = 1e-3
"""Between the last expert that is chosen and the first that is not: every contender must choose the same."""


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

    def __str__(self) -> str:
        extras = [] if self.activation == ("gelu" if self.layer == "MoE" else "relu") else [self.activation]
        extras += ["skewed"] * self.skewed + ["forward+backward" if self.backward else "forward"]
        sizes = f"T={self.tokens} H={self.hidden} F={self.ffn} E={self.experts} k={self.top_k}"
        return f"{self.layer} {sizes} {name_of(self.dtype)} {' '.join(extras)}"

    def settings(self, device: torch.device) -> dict[str, Any]:
        return asdict(self) | {"dtype": name_of(self.dtype), "backend": backend(device, self.dtype)}

    @property
    def active(self) -> int:
        """Experts a token."""
        return self.experts if self.top_k == "all" else int(self.top_k)

    @property
    def flops(self) -> float:
        """Of the chosen experts' matrix products; the gate's are not counted."""
        matrices = 3 if self.activation in GATED else 2
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

    def build(self, device: torch.device) -> Layer:
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

    def inputs(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """-> x and the gradient of y"""
        like = layer.experts.up_weight
        x_TH = torch.randn(self.tokens, self.hidden, device=like.device).to(like.dtype)
        x_TH[:, 0] = 1
        gate = gate_of(layer)
        while self.active < self.experts:
            ranked_TE = gate.logits(x_TH).sort(-1, descending=True).values
            close = ranked_TE[:, self.active - 1] - ranked_TE[:, self.active] < MARGIN
            if not close.any():
                break
            x_TH[close, 1:] = torch.randn(int(close.sum()), self.hidden - 1, device=like.device).to(like.dtype)
        return x_TH, torch.randn(self.tokens, self.hidden, device=like.device).to(like.dtype)


BASE = LayerCase()
"""The BERT-size layer that the sweeps start from."""
WIDE = replace(BASE, hidden=768, ffn=3072)
SBMOE = LayerCase("SBMoE", tokens=64, hidden=384, ffn=192, experts=6, top_k=1, activation="relu")


def step(module: nn.Module, x: Tensor, grad_y: Tensor | None) -> Callable[[], Tensor]:
    """-> what is timed: a forward without gradients, or a forward and the backward of everything"""
    parameters = list(module.parameters())
    drop = drop_statistics(module)
    x = x.detach().requires_grad_(grad_y is not None)

    def forward() -> Tensor:
        with torch.no_grad():
            return module(x)

    def forward_and_backward() -> Tensor:
        for tensor in (x, *parameters):
            tensor.grad = None
        y = module(x)
        if drop is not None:
            drop()
        y.backward(grad_y)
        return x.grad

    return forward if grad_y is None else forward_and_backward


def at(contender: str, size: int) -> str:
    """What a contender is called where several sizes of it are timed against each other."""
    return f"{contender} at {size}"
