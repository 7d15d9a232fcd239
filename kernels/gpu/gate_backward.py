"""The backward of the router, with the sum that ends the backward of the layer.

Twins of `reference.choose_backward` and `.gate_backward`. Four launches at most: the gradient of the logits (and of an
mlp's hidden layer), the gradient of x, the parts of the gradients of the weights, their sum.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import heuristics
from kernels.gpu.combine import live_rows, sum_rows
from kernels.gpu.gate import live_tokens, probabilities, product, same_type
from kernels.gpu.heuristics import cdiv, power_of_2
from kernels.gpu.launch import input_precision, launch
from kernels.gpu.parts import sum_parts
from kernels.gpu.tiles import aligned
from kernels.records import GateGrads, GateWeights, Rule, Tokens
from kernels.routing import Routing


@triton.jit
def _grad_logits(
    p_grad_weights, p_grad_sums, p_logits, p_weights, p_indices, o_t, live, E, K, P,
    ROUTER: tl.constexpr, RENORMALIZE: tl.constexpr, EVERY_EXPERT: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """[BLOCK_T, BLOCK_E] of `reference.choose_backward`, 0 where `live` is false.

    What the chosen experts have, gradient and weight, is spread over a row of all experts first: no step then
    depends on how many were chosen.
    """
    o_e = tl.arange(0, BLOCK_E)
    m_e = (o_e < E)[None, :]
    m_live = m_e & live[:, None]
    o_t = o_t.to(tl.int64)
    logits = tl.load(p_logits + o_t[:, None] * E + o_e[None, :], mask=m_live, other=0.0)
    _, probs, lse = probabilities(logits, m_e, ROUTER)
    grad = tl.zeros([BLOCK_T, BLOCK_E], tl.float32)
    if EVERY_EXPERT:
        weight = tl.load(p_weights + o_t[:, None] * E + o_e[None, :], mask=m_live, other=0.0)
        for part in range(0, P):
            grad += tl.load(p_grad_weights + (o_t[:, None] * E + o_e[None, :]) * P + part, mask=m_live, other=0.0)
    else:
        weight = tl.zeros([BLOCK_T, BLOCK_E], tl.float32)
        o_p = tl.arange(0, BLOCK_P)[None, :]
        for k in range(0, K):
            index = tl.load(p_indices + o_t * K + k, mask=live, other=-1)
            hit = o_e[None, :] == index[:, None]
            p_parts = p_grad_weights + (o_t * K + k)[:, None] * P
            parts = tl.load(p_parts + o_p, mask=live[:, None] & (o_p < P), other=0.0)
            grad = tl.where(hit, tl.sum(parts, 1)[:, None], grad)
            weight = tl.where(hit, tl.load(p_weights + o_t * K + k, mask=live, other=0.0)[:, None], weight)

    # First with respect to the logarithm of a score, which for a softmax is a logit and what they share.
    total = tl.sum(grad * weight, 1)[:, None]
    if RENORMALIZE or ROUTER == "topk_softmax":
        grad_logits = weight * (grad - total)
    elif ROUTER == "softmax":
        grad_logits = weight * grad - probs * total
    else:
        grad_logits = weight * grad
    if p_grad_sums is not None:
        grad_probs = tl.load(p_grad_sums + E + o_e, mask=o_e < E, other=0.0)[None, :]
        grad_logits += probs * (grad_probs - tl.sum(probs * grad_probs, 1)[:, None])
    if ROUTER == "sigmoid":
        grad_logits *= tl.sigmoid(-logits)
    if p_grad_sums is not None:
        softmax = tl.where(m_e, tl.exp(logits - lse), 0.0)
        grad_logits += 2 * tl.load(p_grad_sums + 2 * E) * lse * softmax
    return tl.where(m_live, grad_logits, 0.0)


@triton.jit(do_not_specialize=["T", "E", "K", "P"])
def _choose_backward_kernel(
    p_grad_weights, p_grad_sums, p_logits, p_weights, p_indices, p_mask, p_grad_logits, T, E, K, P,
    ROUTER: tl.constexpr, RENORMALIZE: tl.constexpr, EVERY_EXPERT: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of logits."""
    o_t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    live = live_tokens(p_mask, o_t, T)
    grad_logits = _grad_logits(
        p_grad_weights, p_grad_sums, p_logits, p_weights, p_indices, o_t, live, E, K, P,
        ROUTER, RENORMALIZE, EVERY_EXPERT, BLOCK_T, BLOCK_E, BLOCK_P,
    )  # fmt: skip
    o_e = tl.arange(0, BLOCK_E)
    mask = (o_t < T)[:, None] & (o_e < E)[None, :]
    tl.store(p_grad_logits + o_t.to(tl.int64)[:, None] * E + o_e[None, :], grad_logits, mask=mask)


@triton.jit(do_not_specialize=["T", "H", "G", "E", "K", "P"])
def _hidden_backward_kernel(
    p_grad_weights, p_grad_sums, p_logits, p_weights, p_indices, p_mask, p_x, p_hidden_w, p_hidden_b, p_w,
    p_grad_logits, p_features, p_grad_hidden, T, H, G, E, K, P,
    ROUTER: tl.constexpr, RENORMALIZE: tl.constexpr, EVERY_EXPERT: tl.constexpr, ALIGN: tl.constexpr,
    EVEN_H: tl.constexpr, PRECISION: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The same for an mlp gate, whose hidden layer is computed again: what left it, and the gradient of what entered.

    One program a tile of tokens and a part of the hidden layer; that of the first part stores the gradient of the
    logits.
    """
    H = aligned(H, ALIGN)
    parts = tl.cdiv(G, BLOCK_G)
    o_t = tl.program_id(0) // parts * BLOCK_T + tl.arange(0, BLOCK_T)
    part = tl.program_id(0) % parts
    o_g = part * BLOCK_G + tl.arange(0, BLOCK_G)
    o_e = tl.arange(0, BLOCK_E)
    m_t = (o_t < T)[:, None]
    live = live_tokens(p_mask, o_t, T)
    hidden = product(p_x, o_t, live, p_hidden_w, o_g, H, G, EVEN_H, PRECISION, BLOCK_T, BLOCK_G, BLOCK_K)
    if p_hidden_b is not None:
        hidden += tl.load(p_hidden_b + o_g, mask=o_g < G, other=0.0).to(tl.float32)[None, :]
    grad_logits = _grad_logits(
        p_grad_weights, p_grad_sums, p_logits, p_weights, p_indices, o_t, live, E, K, P,
        ROUTER, RENORMALIZE, EVERY_EXPERT, BLOCK_T, BLOCK_E, BLOCK_P,
    )  # fmt: skip
    if part == 0:
        o_logits = o_t.to(tl.int64)[:, None] * E + o_e[None, :]
        tl.store(p_grad_logits + o_logits, grad_logits, mask=m_t & (o_e < E)[None, :])
    m_w = (o_e < E)[:, None] & (o_g < G)[None, :]
    w = tl.load(p_w + o_e[:, None] * G + o_g[None, :], mask=m_w, other=0.0).to(tl.float32)
    grad_hidden = tl.where(hidden > 0, tl.dot(grad_logits, w, input_precision=PRECISION), 0.0)
    o_out = o_t.to(tl.int64)[:, None] * G + o_g[None, :]
    m_out = m_t & (o_g < G)[None, :]
    tl.store(p_features + o_out, tl.where(live[:, None] & ~(hidden <= 0), hidden, 0.0), mask=m_out)
    tl.store(p_grad_hidden + o_out, grad_hidden, mask=m_out)


@triton.jit(do_not_specialize=["T", "H", "G", "R"])
def _grad_x_kernel(
    p_grad_input, p_w, p_grad_rows, p_grad_y, p_mask, p_grad_x, T, H, G, R,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """One tile of the gradient of x: through the router's first layer [G, H], from the experts, from the residual."""
    H = aligned(H, ALIGN)
    columns = tl.cdiv(H, BLOCK_H)
    o_t = tl.program_id(0) // columns * BLOCK_T + tl.arange(0, BLOCK_T)
    o_h = tl.program_id(0) % columns * BLOCK_H + tl.arange(0, BLOCK_H)
    o_g = tl.arange(0, BLOCK_G)
    m_t = o_t < T
    m_h = o_h < H
    acc = tl.zeros([BLOCK_T, BLOCK_H], tl.float32)
    p_grad_input += o_t.to(tl.int64)[:, None] * G + o_g[None, :]
    p_w += o_g[:, None] * H + o_h[None, :]
    for g in range(0, G, BLOCK_G):
        m_g = o_g < G - g
        grad = tl.load(p_grad_input + g, mask=m_t[:, None] & m_g[None, :], other=0.0)
        w = tl.load(p_w + g * H, mask=m_g[:, None] & m_h[None, :], other=0.0).to(tl.float32)
        acc = tl.dot(grad, w, acc, input_precision=PRECISION)
    mask = m_t[:, None] & m_h[None, :]
    acc += sum_rows(p_grad_rows, o_t, o_h, mask, R, H)
    if p_grad_y is not None:
        acc += live_rows(p_grad_y, p_mask, o_t, o_h, mask, T, H)
    tl.store(p_grad_x + o_t.to(tl.int64)[:, None] * H + o_h[None, :], acc, mask=mask)


@triton.jit
def _outer(
    p_grad, p_features, p_mask, p_parts, tile, first, stop, M, N,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Tokens first..stop of grad ⊗ features: a tile of [M, N], then the sum of grad [M] behind it."""
    columns = tl.cdiv(N, BLOCK_N)
    o_m = tile // columns * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tile % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    m_m = o_m < M
    m_n = o_n < N
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for t in range(first, stop, BLOCK_T):
        o_t = t + tl.arange(0, BLOCK_T)
        live = live_tokens(p_mask, o_t, stop)
        o_t = o_t.to(tl.int64)
        grad = tl.load(p_grad + o_t[None, :] * M + o_m[:, None], mask=live[None, :] & m_m[:, None], other=0.0)
        x = tl.load(p_features + o_t[:, None] * N + o_n[None, :], mask=live[:, None] & m_n[None, :], other=0.0)
        grad, x = same_type(grad, x)
        acc = tl.dot(grad, x, acc, input_precision=PRECISION)
        total += tl.sum(grad, 1)
    tl.store(p_parts + o_m[:, None] * N + o_n[None, :], acc, mask=m_m[:, None] & m_n[None, :])
    if tile % columns == 0:
        tl.store(p_parts + M * N + o_m, total, mask=m_m)


@triton.jit(do_not_specialize=["T", "E", "G", "H", "SPAN"])
def _router_grad_kernel(
    p_grad_logits, p_grad_hidden, p_features, p_x, p_mask, p_parts, T, E, G, H, SPAN, ALIGN: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Parts of the gradients of the last layer [E, G] and its bias, then of an mlp's hidden layer [G, H] and its bias.

    A part is the sum over SPAN tokens: a router has so few weights that its tiles alone would not fill a GPU.
    """
    H = aligned(H, ALIGN)
    size = E * G + E
    tiles = tl.cdiv(E, BLOCK_M) * tl.cdiv(G, BLOCK_N)
    if p_grad_hidden is not None:
        size += G * H + G
        hidden_tiles = tl.cdiv(G, BLOCK_M) * tl.cdiv(H, BLOCK_N)
        part = tl.program_id(0) // (tiles + hidden_tiles)
        tile = tl.program_id(0) % (tiles + hidden_tiles)
        p_parts += part.to(tl.int64) * size
        stop = tl.minimum((part + 1) * SPAN, T)
        if tile < tiles:
            _outer(p_grad_logits, p_features, p_mask, p_parts, tile, part * SPAN, stop, E, G,
                   PRECISION, BLOCK_M, BLOCK_N, BLOCK_T)  # fmt: skip
        else:
            _outer(p_grad_hidden, p_x, p_mask, p_parts + E * G + E, tile - tiles, part * SPAN, stop, G, H,
                   PRECISION, BLOCK_M, BLOCK_N, BLOCK_T)  # fmt: skip
    else:
        part = tl.program_id(0) // tiles
        p_parts += part.to(tl.int64) * size
        stop = tl.minimum((part + 1) * SPAN, T)
        _outer(p_grad_logits, p_x, p_mask, p_parts, tl.program_id(0) % tiles, part * SPAN, stop, E, H,
               PRECISION, BLOCK_M, BLOCK_N, BLOCK_T)  # fmt: skip


def choose_backward(
    grad_weights_SP: Tensor, grad_sums_L: Tensor | None, routing: Routing, mask_T: Tensor | None, rule: Rule
) -> Tensor:
    weights_TK, indices_TK, logits_TE = routing
    num_tokens, num_experts = logits_TE.shape
    grad_logits_TE = torch.empty_like(logits_TE)
    block_e, block_p = power_of_2(num_experts), power_of_2(grad_weights_SP.shape[1])
    tile = heuristics.choose_backward_tile(num_tokens, block_e, block_p)
    launch(
        _choose_backward_kernel, cdiv(num_tokens, tile.m),
        grad_weights_SP, grad_sums_L, logits_TE, weights_TK, indices_TK, mask_T, grad_logits_TE,
        num_tokens, num_experts, indices_TK.shape[1], grad_weights_SP.shape[1],
        tile=tile, ROUTER=rule.router, RENORMALIZE=rule.renormalize, EVERY_EXPERT=indices_TK.shape[1] == 0,
        BLOCK_T=tile.m, BLOCK_E=block_e, BLOCK_P=block_p,
    )  # fmt: skip
    return grad_logits_TE


def gate_backward(
    grads: GateGrads, tokens: Tokens, routing: Routing, gate: GateWeights, rule: Rule
) -> tuple[Tensor | None, GateWeights, Tensor]:
    grad_weights_SP, grad_sums_L, grad_x_SH, grad_y_TH = grads
    weights_TK, indices_TK, logits_TE = routing
    hidden_weight_GH, hidden_bias_G, weight_EG, *_ = gate
    x_TH, mask_T, _ = tokens
    (num_tokens, hidden), (num_experts, width) = x_TH.shape, weight_EG.shape
    precision, align = input_precision(), heuristics.alignment(hidden)
    features_TG = grad_hidden_TG = None
    if hidden_weight_GH is None:
        grad_logits_TE = choose_backward(grad_weights_SP, grad_sums_L, routing, mask_T, rule)
    else:
        grad_logits_TE = torch.empty_like(logits_TE)
        features_TG = logits_TE.new_empty(num_tokens, width)
        grad_hidden_TG = logits_TE.new_empty(num_tokens, width)
        block_e, block_p = power_of_2(num_experts, 16), power_of_2(grad_weights_SP.shape[1])
        tile = heuristics.hidden_backward_tile(block_e, x_TH.dtype == hidden_weight_GH.dtype != torch.float32)
        launch(
            _hidden_backward_kernel, cdiv(num_tokens, tile.m) * cdiv(width, tile.n),
            grad_weights_SP, grad_sums_L, logits_TE, weights_TK, indices_TK, mask_T,
            x_TH, hidden_weight_GH, hidden_bias_G, weight_EG, grad_logits_TE, features_TG, grad_hidden_TG,
            num_tokens, hidden, width, num_experts, indices_TK.shape[1], grad_weights_SP.shape[1],
            tile=tile, ROUTER=rule.router, RENORMALIZE=rule.renormalize, EVERY_EXPERT=indices_TK.shape[1] == 0,
            ALIGN=align, EVEN_H=hidden % tile.k == 0, PRECISION=precision,
            BLOCK_E=block_e, BLOCK_P=block_p, BLOCK_T=tile.m, BLOCK_G=tile.n, BLOCK_K=tile.k,
        )  # fmt: skip

    grad_x_TH = None
    if grad_x_SH is not None:
        grad_x_TH = torch.empty_like(x_TH)
        grad_input = grad_logits_TE if grad_hidden_TG is None else grad_hidden_TG
        tile = heuristics.grad_x_tile(num_tokens)
        launch(
            _grad_x_kernel, cdiv(num_tokens, tile.m) * cdiv(hidden, tile.n),
            grad_input, weight_EG if hidden_weight_GH is None else hidden_weight_GH, grad_x_SH, grad_y_TH, mask_T,
            grad_x_TH, num_tokens, hidden, grad_input.shape[1], len(grad_x_SH) // max(1, num_tokens),
            tile=tile, ALIGN=align, PRECISION=precision, BLOCK_T=tile.m, BLOCK_H=tile.n, BLOCK_G=tile.k,
        )  # fmt: skip

    create = torch.zeros if num_tokens == 0 else torch.empty
    shapes = [(weight_EG, weight_EG.shape), (weight_EG, (num_experts,))]
    if hidden_weight_GH is not None:
        shapes += [(hidden_weight_GH, hidden_weight_GH.shape), (hidden_weight_GH, (width,))]
    own_grads = [create(shape, dtype=like.dtype, device=like.device) for like, shape in shapes]
    if num_tokens:
        tile = heuristics.router_grad_tile(num_experts)
        tiles = cdiv(num_experts, tile.m) * cdiv(width, tile.n)
        if hidden_weight_GH is not None:
            tiles += cdiv(width, tile.m) * cdiv(hidden, tile.n)
        span = heuristics.router_grad_span(num_tokens, tiles, tile.k)
        size = sum(grad.numel() for grad in own_grads)
        parts = logits_TE.new_empty(cdiv(num_tokens, span), size)
        launch(
            _router_grad_kernel, len(parts) * tiles,
            grad_logits_TE, grad_hidden_TG, features_TG, x_TH, mask_T, parts,
            num_tokens, num_experts, width, hidden, span,
            tile=tile, ALIGN=align, PRECISION=precision, BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_T=tile.k,
        )  # fmt: skip
        sum_parts(parts, own_grads)
    grad_weight, grad_bias, *hidden_grads = own_grads
    grad_gate = GateWeights._make([*(hidden_grads or (None, None)), grad_weight, grad_bias, None])
    return grad_x_TH, grad_gate, grad_logits_TE
