"""Everything that the heuristics can make the primitives launch: for `kernels.inspect`.

The primitives run on meta tensors, which have types and shapes but no memory. A full product of all choices would be
tens of thousands of kernels that differ in nothing that a compiler's resources depend on; so each size, expert count
and type varies around a common case, for every tile that the heuristics choose.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.activations import ACTIVATIONS, GATED, width_of
from kernels.dropout import Dropout
from kernels.gpu import (
    all_experts,
    attention,
    attention_backward,
    combine,
    gate,
    gate_backward,
    grouped,
    grouped_backward,
    heuristics,
    plan,
    residual_norm,
    weight_grad,
)
from kernels.gpu.launch import Launch, watch
from kernels.records import ExpertWeights, GateGrads, GateWeights, Rule, Sequences, Tokens
from kernels.routing import ALL, ROUTERS

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


class Case(NamedTuple):
    """One layer on one batch."""

    tokens: int = 65536
    experts: int = 8
    top_k: int = 2
    hidden: int = 768
    ffn: int = 3072
    activation: str = "gelu"
    x: torch.dtype = BF16
    weight: torch.dtype = BF16
    router: torch.dtype = BF16
    router_kind: str = "softmax"
    mlp: bool = False
    masked: bool = False
    bias: bool = True
    renormalize: bool = True
    precision: str = "ieee"


TOKENS = (1, 64, 128, 512, 65536)
"""One for each height of a tile: 16, 32, 64 and 128 rows an expert."""


def _cases(quick: bool) -> Iterator[Case]:
    common = Case()
    if quick:
        yield common._replace(tokens=64)
        yield common._replace(activation="geglu", mlp=True, masked=True)
        yield common._replace(top_k=ALL)
        yield Case(x=FP32, weight=FP32, router=FP32)
        yield from _mixed(BF16, FP32, tokens=65536)
        return
    for dtype in (BF16, FP16, FP32):
        for tokens in TOKENS:
            for top_k in (2, ALL):
                yield Case(tokens=tokens, top_k=top_k, x=dtype, weight=dtype, router=dtype)
    for dtype in (BF16, FP32):
        for tokens in (64, 65536):
            case = Case(tokens=tokens, x=dtype, weight=dtype, router=dtype)
            for activation in (*ACTIVATIONS, *GATED):
                yield case._replace(activation=activation)
            yield case._replace(mlp=True, masked=True, top_k=1)
            yield case._replace(hidden=312, ffn=1200, activation="geglu", mlp=True, masked=True)
            yield case._replace(hidden=50, ffn=70, bias=False)
            for experts in (2, 64):
                yield case._replace(experts=experts)
                yield case._replace(experts=experts, mlp=True, masked=True, top_k=ALL)
        for ffn in (384, 768):  # few programs for the gradients of weights: their sums are cut, and just not
            yield case._replace(hidden=384, ffn=ffn, experts=2)
        for router_kind in ROUTERS:
            for renormalize in (True, False):
                yield case._replace(router_kind=router_kind, renormalize=renormalize, mlp=True, masked=True)
    for tokens in (1, 65536):
        for top_k in (2, ALL):
            yield Case(tokens=tokens, top_k=top_k, x=FP32, weight=FP32, router=FP32, precision="tf32")
        for dtype in (BF16, FP16):
            for x in (FP32, dtype):
                yield from _mixed(dtype, x, tokens)


def _mixed(dtype: torch.dtype, x: torch.dtype, tokens: int) -> Iterator[Case]:
    """As they meet under autocast: routers stay in fp32, experts' weights are cast, x comes as the module before left
    it, in fp32 from a residual connection, in 16 bits from a product. `MoE`, then `SBMoE`, which adds x; no masks:
    there is no padding."""
    layer = Case(tokens=tokens, x=x, weight=dtype, router=FP32)
    yield layer
    for top_k in (1, ALL):
        yield layer._replace(mlp=True, top_k=top_k, activation="relu")


class Norm(NamedTuple):
    """The end of half a block, with the types that meet under autocast: a residual connection in fp32, what a product
    left in 16 bits, parameters in fp32."""

    tokens: int = 65536
    hidden: int = 768
    x: torch.dtype = FP32
    y: torch.dtype = BF16
    weight: torch.dtype = FP32


def _norms(quick: bool) -> Iterator[Norm]:
    yield Norm()
    if quick:
        return
    yield Norm(tokens=1)
    for hidden in (50, 312, 384, 1024, 2048, 4096):
        yield Norm(hidden=hidden)
    yield Norm(y=FP16)
    for dtype in (FP32, BF16, FP16):
        yield Norm(x=dtype, y=dtype, weight=dtype)


def launches(quick: bool = False) -> list[Launch]:
    """What the cases launch, each only once."""
    seen: dict[object, Launch] = {}

    def remember(launch: Launch) -> bool:
        kinds = tuple(a.dtype if isinstance(a, Tensor) else type(a) for a in launch.arguments)
        constants = tuple(sorted(launch.constants.items()))
        key = (launch.kernel, kinds, str(constants), *launch[-3:])
        seen.setdefault(key, launch)
        return False

    with watch(remember):
        for case in _cases(quick):
            with _fp32_precision(case.precision):
                _run_layer(case)
        sizes = (64,) if quick else (26, 32, 64, 96, 128, 256)
        for size in sizes:
            for dtype in (BF16, FP32) if quick or size not in (64, 128) else (BF16, FP16, FP32):
                if not heuristics.attention_fits(size, dtype):
                    continue
                _run_attention(size, dtype, 512, 0.1)
                if not quick and size in (26, 64):
                    _run_attention(size, dtype, 512, 0.0)
                    _run_attention(size, dtype, 32, 0.1)
        with _fp32_precision("tf32"):
            _run_attention(64, FP32, 512, 0.1)
        for norm in _norms(quick):
            for rate in (0.1,) if quick else (0.0, 0.1):
                _run_residual_norm(norm, rate)
    return list(seen.values())


@contextmanager
def _fp32_precision(precision: str) -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _run_layer(case: Case) -> None:
    """Forward and backward, as `functional.py` calls them; where it passes a tensor or None, both."""
    num_tokens, num_experts, hidden, ffn = case.tokens, case.experts, case.hidden, case.ffn
    width = width_of(ffn, case.activation)
    x = _empty(num_tokens, hidden, dtype=case.x)
    grad_y = _empty(num_tokens, hidden, dtype=case.x)
    mask = _empty(num_tokens, dtype=torch.bool) if case.masked else None
    noise = _empty(num_tokens, num_experts, dtype=FP32) if case.mlp else None
    selection = _empty(num_experts, dtype=FP32) if case.router_kind == "sigmoid" else None
    tokens = Tokens(x, mask, noise)
    weights = GateWeights(
        _empty(hidden // 2, hidden, dtype=case.router) if case.mlp else None,
        _empty(hidden // 2, dtype=case.router) if case.mlp else None,
        _empty(num_experts, hidden // 2 if case.mlp else hidden, dtype=case.router),
        _empty(num_experts, dtype=case.router) if case.mlp else None,
        selection,
    )
    experts = ExpertWeights(
        _empty(num_experts, width, hidden, dtype=case.weight),
        _empty(num_experts, width, dtype=case.weight) if case.bias else None,
        _empty(num_experts, hidden, ffn, dtype=case.weight),
        _empty(num_experts, hidden, dtype=case.weight) if case.bias else None,
    )
    rule, activation = Rule(case.top_k, case.router_kind, case.renormalize), case.activation

    routing, partials = gate.gate(tokens, weights, rule)
    gate.choose(routing.logits_TE, selection, mask, rule)
    chosen, residual = routing.weights_TK, x if case.mlp else None
    if case.top_k == ALL:
        for keep in (True, False):
            act, pre = all_experts.all_up(x, chosen, experts, activation, keep)
        pre = _empty(num_tokens, num_experts, width, dtype=case.weight)
        all_experts.all_down(act, chosen, experts, residual, case.x)
        grad_pre, weighted_act, grad_weights = all_experts.all_down_backward(grad_y, pre, chosen, experts, activation)
        all_experts.all_down_weight_grad(grad_y, weighted_act, chosen, case.bias)
        all_experts.all_up_weight_grad(x, grad_pre, case.bias)
        grad_x = all_experts.all_up_backward(grad_pre, experts)
    else:
        plan.plan(routing.indices_TK, num_experts)
        planned = plan.plan(routing.indices_TK, num_experts, partials)
        for keep in (True, False):
            act, pre = grouped.up(x, planned, experts, case.top_k, activation, keep)
        pre = _empty(len(planned.order_S), width, dtype=case.weight)
        if case.top_k == 1:
            grouped.down(act, planned, chosen, experts, residual, case.x)
        rows = grouped.down(act, planned, chosen, experts, None, case.weight)
        combine.combine(rows, case.top_k, residual, mask, case.x)
        grad_pre, weighted_act, grad_weights = grouped_backward.down_backward(
            grad_y, pre, planned, chosen, experts, activation
        )
        weight_grad.down_weight_grad(grad_y, weighted_act, planned, chosen, case.bias)
        weight_grad.up_weight_grad(x, grad_pre, planned, case.top_k, case.bias)
        grad_x = grouped_backward.up_backward(grad_pre, planned, experts)
    sums = _empty(2 * num_experts + 2, dtype=FP32)
    gate_backward.choose_backward(grad_weights, sums, routing, mask, rule)
    gate_backward.gate_backward(GateGrads(grad_weights, sums, grad_x, residual), tokens, routing, weights, rule)


def _run_attention(size: int, dtype: torch.dtype, max_len: int, dropout: float) -> None:
    q = _empty(max_len, 12, size, dtype=dtype)
    settings = Sequences(_empty(2, dtype=torch.int32), max_len), Dropout(dropout, _empty(dtype=torch.int64))
    out, lse = attention.attention(q, q, q, *settings)
    attention_backward.attention_backward(q, q, q, q, out, lse, *settings)


def _run_residual_norm(norm: Norm, rate: float) -> None:
    x, y = (_empty(norm.tokens, norm.hidden, dtype=dtype) for dtype in (norm.x, norm.y))
    weight = _empty(norm.hidden, dtype=norm.weight)
    dropout = Dropout(rate, _empty(dtype=torch.int64))
    out, stats = residual_norm.residual_norm(x, y, weight, weight, 1e-12, dropout)
    residual_norm.residual_norm_backward(out, x, y, weight, weight, stats, dropout)
