"""Every primitive and fusion in every type against its eager twin in fp64: full tensors, three times the same bits, on
memory that holds NaN before.

    python -m bench.gpu.primitives OUTPUT.jsonl [--only TEXT] [--share K/N] [--small]
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton

from bench.cases.correct import TOLERANCE, relative_error
from bench.cases.primitives import leaves, wide
from bench.gpu import saved
from bench.gpu.script import on_real_tensors, random
from bench.harness.machine import name_of
from kernels import dispatch, reference
from kernels.dropout import Dropout
from kernels.gpu import sweep
from kernels.records import Sequences
from kernels.routing import ALL

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
TYPES = {
    "bf16": (BF16, BF16, BF16),
    "fp16": (FP16, FP16, FP16),
    "fp32": (FP32, FP32, FP32),
    "mixed bf16": (FP32, BF16, FP32),
    "mixed fp16": (FP32, FP16, FP32),
}
"""Of x, of the experts, of the router. The mixed ones meet under autocast."""
LAYERS: dict[str, dict[str, Any]] = {
    "MoE": {},
    "MoE swiglu": dict(activation="swiglu", bias=False),
    "MoE sigmoid": dict(router_kind="sigmoid"),
    "SBMoE": dict(mlp=True, top_k=1, activation="relu", renormalize=False),
    "SBMoE all": dict(mlp=True, masked=True, top_k=ALL, activation="relu"),
}
SIZES = [(4096, 384, 1536, 8), (333, 312, 1200, 8), (4096, 768, 3072, 64), (16384, 384, 384, 2), (1, 768, 3072, 8)]
"""Tokens, hidden, ffn, experts; of all experts on every token no more than 8."""
SMALL = [(21, 24, 20, 3)]
NORMS, SMALL_NORMS = [(4096, 768), (333, 312), (65536, 384), (1, 1024)], [(21, 24)]
"""Tokens, hidden."""
HEADS, LENGTHS = (64, 32, 26), [0, 5, 512, 130]
SMALL_HEADS, SMALL_LENGTHS = (26,), [0, 5, 40]
REPEATS = 3


def layers(sizes: list[tuple[int, int, int, int]]) -> Iterator[tuple[str, sweep.Case]]:
    for tokens, hidden, ffn, experts in sizes:
        for kind, settings in LAYERS.items():
            if kind == "SBMoE all" and experts > 8:
                continue
            for name, (x, weight, router) in TYPES.items():
                case = sweep.Case(tokens, experts, 2, hidden, ffn, x=x, weight=weight, router=router)
                yield f"{kind} T={tokens} H={hidden} F={ffn} E={experts} {name}", case._replace(**settings)


class Held:
    """Runs a backend's primitives and notes by how much they are off; the first that is wrong raises."""

    def __init__(self, backend: Any, tolerance: float):
        self.backend, self.tolerance = backend, tolerance
        self.errors: dict[str, float] = {}

    def __call__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments: self.run(name, *arguments)

    def run(self, name: str, *arguments: Any) -> Any:
        """-> what the primitive returned"""
        runs = [getattr(self.backend, name)(*arguments) for _ in range(REPEATS)]
        for again in runs[1:]:
            same = [a is b is None or torch.equal(a, b) for a, b in zip(leaves(runs[0]), leaves(again), strict=True)]
            assert all(same), f"{name}: other bits when it ran again"
        pairs = zip(leaves(runs[0]), leaves(self._truth(name, runs[0], arguments)), strict=True)
        for number, (ours, truth) in enumerate(pairs):
            if truth is None:
                assert ours is None, f"{name}: result {number} should be none"
                continue
            if name in ("gate", "choose") and number == 3:
                ours, truth = ours.sum(0), truth.sum(0)  # which each backend cuts into parts of its own
            elif name in ("down_backward", "all_down_backward") and number == 2:
                ours, truth = ours.sum(-1), truth.sum(-1)
            self._compare(f"{name} {number}", ours, truth)
        return runs[0]

    def _truth(self, name: str, ours: Any, arguments: tuple[Any, ...]) -> Any:
        """A router chooses by its own logits: rounding may decide where two experts are equally good."""
        if name != "gate":
            return getattr(dispatch.get("eager"), name)(*wide(arguments))
        tokens, gate, rule = arguments
        (true_routing, _), (routing, _) = reference.gate(*wide(arguments)), ours
        chosen, partials = reference.choose(routing.logits_TE, gate.selection_bias_E, tokens.mask_T, rule)
        return chosen._replace(logits_TE=true_routing.logits_TE), partials

    def _compare(self, what: str, ours: torch.Tensor, truth: torch.Tensor) -> None:
        if not truth.is_floating_point():
            assert torch.equal(ours, truth), f"{what} is another"
            return
        error = relative_error(ours, truth)
        assert error <= self.tolerance, f"{what} is off by {error:.1e}, more than {self.tolerance:.0e}"
        self.errors[what] = float(f"{error:.1e}")


def run_layer(backend: Any, case: sweep.Case, device: torch.device) -> dict[str, Any]:
    check_type(backend, case.weight, device)
    held = Held(backend, TOLERANCE[case.weight])
    with on_real_tensors(device, held):
        sweep._run_layer(case)
    return {"errors": held.errors}


def norms(small: bool) -> Iterator[tuple[str, sweep.Norm, float]]:
    """-> their name, what they are of, the rate of dropout. Their x, y and weight have the three types of a layer."""
    for tokens, hidden in SMALL_NORMS if small else NORMS:
        for name, types in TYPES.items():
            for rate in (0.0, 0.1):
                case = sweep.Norm(tokens, hidden, *types)
                yield f"residual_norm T={tokens} H={hidden} dropout={rate} {name}", case, rate


def run_norm(backend: Any, norm: sweep.Norm, rate: float, device: torch.device) -> dict[str, Any]:
    check_type(backend, norm.y, device)
    held = Held(backend, TOLERANCE[norm.y])
    with on_real_tensors(device, held):
        sweep._run_residual_norm(norm, rate)
    return {"errors": held.errors}


class Attention(NamedTuple):
    size: int
    dtype: torch.dtype
    rate: float
    """Of dropout."""
    lengths: list[int]

    def __str__(self) -> str:
        return f"attention D={self.size} dropout={self.rate} {name_of(self.dtype)}"


def attentions(small: bool) -> Iterator[Attention]:
    for size in SMALL_HEADS if small else HEADS:
        for dtype in (FP32, FP16, BF16):
            for rate in (0.0, 0.1):
                yield Attention(size, dtype, rate, SMALL_LENGTHS if small else LENGTHS)


def run_attention(backend: Any, case: Attention, device: torch.device) -> dict[str, Any]:
    size, dtype, rate, _ = case
    check_type(backend, dtype, device)
    held, lengths = Held(backend, TOLERANCE[dtype]), torch.tensor(case.lengths)
    starts = lengths.cumsum(0).int().to(device)
    settings = Sequences(starts, int(lengths.max())), Dropout(rate, torch.tensor(7, device=device))
    rows = [random(int(lengths.sum()), 2 * size, dtype=dtype, device=device) for _ in range(4)]
    q, k, v, grad = (row.unflatten(1, (2, size)) for row in rows)
    out, lse = held.run("attention", q, k, v, *settings)
    held.run("attention_backward", grad, q, k, v, out, lse, *settings)
    return {"errors": held.errors}


def check_type(backend: Any, dtype: torch.dtype, device: torch.device) -> None:
    if not backend.supports(device, dtype):
        raise saved.Skipped(f"{backend.name} has no {dtype} on {device.type}")


class TritonCache:
    """How many kernels Triton found compiled, and how many it did not: what a cache that was brought along is worth."""

    def __init__(self) -> None:
        self.found = self.compiled = 0
        triton.knobs.compilation.listener = self

    def __call__(self, *, cache_hit: bool, **_: Any) -> None:
        self.found += cache_hit
        self.compiled += not cache_hit


def main() -> None:
    options = saved.parser(__doc__).parse_args()
    cases, device = saved.cases_of(options), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cache = TritonCache()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    backend = dispatch.get("triton")
    for name, case in layers(SMALL if options.small else SIZES):
        torch.manual_seed(0)
        cases.run(name, lambda case=case: run_layer(backend, case, device))
    for name, norm, rate in norms(options.small):
        torch.manual_seed(0)
        cases.run(name, lambda norm=norm, rate=rate: run_norm(backend, norm, rate, device))
    for attention in attentions(options.small):
        cases.run(str(attention), lambda attention=attention: run_attention(backend, attention, device))
    cases.save("Triton's cache", "held", found=cache.found, compiled=cache.compiled)
    cases.end()


if __name__ == "__main__":
    main()
