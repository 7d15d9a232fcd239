"""What launches cost the host, measured without a GPU: Triton runs as it is, its driver is a stand-in.

    python -m bench.launches [--seconds N]

Each call is timed three ways: with launches as they are, with every launch by Triton itself, which finds out
each time what was compiled for these arguments, and with launches left out. What a call takes beyond the last is that
of its launches. Told are the shortest times. The driver's own work is in none of them.
"""

import argparse
import math
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

import kernels
from bench.harness import no_gpu
from kernels.encoder import residual_norm

TOKENS, HIDDEN = 16, 64
"""Small: what the host does for a launch is the same for any size."""


def calls() -> dict[str, Callable[[], Any]]:
    x = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    moe = kernels.MoE(HIDDEN, 4 * HIDDEN, num_experts=8, top_k=2).eval()
    pooled = kernels.SBMoE(HIDDEN, num_experts=6).eval()
    norm = Norm(HIDDEN)
    return {
        "MoE forward": lambda: _forward(moe, x),
        "SBMoE forward": lambda: _forward(pooled, x),
        "MoE forward+backward": lambda: _forward_and_backward(moe, x),
        "SBMoE forward+backward": lambda: _forward_and_backward(pooled, x),
        "norm forward": lambda: _forward(norm, x),
        "norm forward+backward": lambda: _forward_and_backward(norm, x),
    }


class Norm(torch.nn.LayerNorm):
    """The end of half a block in training: what was computed from x is x itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return residual_norm(x, x, self.weight, self.bias, self.eps, dropout=0.1)


def _forward(layer: torch.nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        layer(x)


def _forward_and_backward(layer: torch.nn.Module, x: torch.Tensor) -> None:
    y = layer(x)
    if isinstance(layer, kernels.MoE | kernels.SBMoE):
        layer.sums.take()
    y.sum().backward()
    layer.zero_grad()
    x.grad = None


def ways() -> dict[str, Callable[..., None]]:
    from kernels.gpu import launch

    def by_triton(kernel, device, *arguments):
        launch._start_anew(kernel, *arguments)

    return {"kept": launch._start, "Triton": by_triton, "none": lambda *_: None}


def fastest(call: Callable[[], Any], start: Callable[..., None], seconds: float) -> float:
    """-> µs. One way without another in between: Python grows faster on what it does again and again."""
    from kernels.gpu import launch

    with mock.patch.object(launch, "_start", start):
        call()
        deadline, best = time.perf_counter() + seconds, math.inf
        while (begun := time.perf_counter()) < deadline:
            call()
            best = min(best, time.perf_counter() - begun)
    return 1e6 * best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="a case (default: %(default)s)")
    seconds = parser.parse_args().seconds
    no_gpu.start()
    torch.set_num_threads(1)
    from kernels.gpu import launch

    print(f"{'µs':<26}{'launches':>9}{'a call':>9}{'without':>9}{'a launch':>10}{'by Triton':>11}")
    with kernels.use_backend("triton"):
        for name, call in calls().items():
            count: list[launch.Launch] = []
            with launch.watch(lambda one, count=count: count.append(one) or True):
                call()

            kept, triton, none = (fastest(call, start, seconds / 3) for start in ways().values())
            each, theirs = ((taken - none) / len(count) for taken in (kept, triton))
            print(f"{name:<26}{len(count):>9}{kept:>9.0f}{none:>9.0f}{each:>10.1f}{theirs:>11.1f}", flush=True)


if __name__ == "__main__":
    main()
