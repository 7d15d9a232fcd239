"""The router: logits, the experts they choose and the sums for the losses. Twins of `reference.gate` and `.choose`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import heuristics
from kernels.gpu.launch import input_precision, launch
from kernels.gpu.tiles import aligned
from kernels.records import GateWeights, Rule, Tokens
from kernels.routing import ALL, Routing

LOWEST = tl.constexpr(-(2**31))


@triton.jit
def softmax(logits, m_e):
    """Of real columns -> probabilities (0 elsewhere), and the log-sum-exp [.., 1]. One NaN makes a row NaN."""
    logits = tl.where(m_e, logits, -float("inf"))
    highest = tl.max(logits, 1)[:, None]
    exp = tl.exp(logits - highest)
    total = tl.sum(exp, 1)[:, None]
    return exp / total, highest + tl.log(total)


@triton.jit
def sigmoid_shares(logits, m_e):
    """Of real columns -> each sigmoid over their sum, 0 elsewhere.

    A sigmoid is e^min(x, 0) / (1 + e^-abs(x)), and the largest of the powers is divided out: so sigmoids that underflow
    have shares, too.
    """
    low = tl.where(m_e, tl.where(logits > 0, 0.0, logits), -float("inf"))
    parts = tl.exp(low - tl.max(low, 1)[:, None]) * tl.sigmoid(tl.abs(logits))
    return parts / tl.sum(parts, 1)[:, None]


@triton.jit
def probabilities(logits, m_e, ROUTER: tl.constexpr):
    """Of real columns -> scores, the distribution that the losses take, and the log-sum-exp [.., 1]."""
    probs, lse = softmax(logits, m_e)
    scores = probs
    if ROUTER == "sigmoid":
        scores = tl.where(m_e, tl.sigmoid(logits), 0.0)
        probs = sigmoid_shares(logits, m_e)
    return scores, probs, lse


@triton.jit
def _sort_key(ranking, m_e):
    """fp32 -> int32 in the same order, NaN above all; what is no expert comes below everything."""
    bits = tl.where(ranking == 0, 0.0, ranking).to(tl.int32, bitcast=True)
    key = tl.where(ranking != ranking, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    return tl.where(m_e, key, LOWEST)


@triton.jit
def _choose_rows(
    logits, o_t, live, p_selection, p_weights, p_indices, p_partials, T, E, K,
    ROUTER: tl.constexpr, RENORMALIZE: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_TOP: tl.constexpr,
):  # fmt: skip
    """Logits [BLOCK_T, BLOCK_E], 0 where `live` is false, to all that `reference.choose` returns. No BLOCK_TOP: all."""
    o_e = tl.arange(0, BLOCK_E)
    m_e = (o_e < E)[None, :]
    m_live = m_e & live[:, None]
    scores, probs, lse = probabilities(logits, m_e, ROUTER)
    RELATIVE: tl.constexpr = RENORMALIZE or ROUTER == "topk_softmax"
    broken = tl.max((m_e & ~(tl.abs(logits) < float("inf"))).to(tl.int32), 1)[:, None] > 0
    tokens = tl.sum(live.to(tl.int32), 0)
    counts = tl.where(o_e < E, tokens, 0)
    if BLOCK_TOP == 0:
        shares = probs if RELATIVE else scores
        weights = tl.where(m_live, tl.where(broken, float("nan"), shares), 0.0)
        tl.store(p_weights + o_t[:, None] * E + o_e[None, :], weights, mask=(o_t < T)[:, None] & m_e)
    else:
        key = _sort_key(logits, m_e)
        if p_selection is not None:  # the logits then decide only between equals
            ties = key
            ranking = scores if ROUTER == "sigmoid" else logits
            ranking += tl.load(p_selection + o_e, mask=o_e < E, other=0.0).to(tl.float32)[None, :]
            key = _sort_key(ranking, m_e)
        value = logits if RELATIVE else scores
        o_k = tl.arange(0, BLOCK_TOP)[None, :]
        chosen = tl.full([logits.shape[0], BLOCK_TOP], -float("inf") if RELATIVE else 0.0, tl.float32)
        indices = tl.zeros([logits.shape[0], BLOCK_TOP], tl.int32)
        counts = tl.zeros([BLOCK_E], tl.int32)
        for k in range(0, K):
            best = tl.max(key, 1)[:, None]
            tied = key == best
            if p_selection is not None:
                tied = tied & (ties == tl.max(tl.where(tied, ties, LOWEST), 1)[:, None])
            index = tl.min(tl.where(tied, o_e[None, :], BLOCK_E), 1)[:, None]
            hit = o_e[None, :] == index
            counts += tl.sum((hit & m_live).to(tl.int32), 0)
            chosen = tl.where(o_k == k, tl.sum(tl.where(hit, value, 0.0), 1)[:, None], chosen)
            indices = tl.where(o_k == k, index, indices)
            key = tl.where(hit, LOWEST, key)
        if RELATIVE:
            if ROUTER == "sigmoid":
                chosen = sigmoid_shares(chosen, o_k < K)
            else:
                chosen, _ = softmax(chosen, o_k < K)
        chosen = tl.where(live[:, None], tl.where(broken, float("nan"), chosen), 0.0)
        o_out = o_t[:, None] * K + o_k
        m_out = (o_t < T)[:, None] & (o_k < K)
        tl.store(p_weights + o_out, chosen, mask=m_out)
        tl.store(p_indices + o_out, tl.where(live[:, None], indices, -1), mask=m_out)

    p_partials += tl.program_id(0) * (2 * E + 2)
    tl.store(p_partials + o_e, counts.to(tl.float32), mask=o_e < E)
    tl.store(p_partials + E + o_e, tl.sum(tl.where(m_live, probs, 0.0), 0), mask=o_e < E)
    squared = tl.where(live[:, None], lse * lse, 0.0)
    tl.store(p_partials + 2 * E, tl.sum(tl.sum(squared, 1), 0))
    tl.store(p_partials + 2 * E + 1, tokens.to(tl.float32))


@triton.jit
def live_tokens(p_mask, o_t, T):
    live = o_t < T
    if p_mask is not None:
        live = live & (tl.load(p_mask + o_t, mask=live, other=0) != 0)
    return live


@triton.jit
def same_type(a, b):
    """Two operands of a product: as they are if their types agree (exact in fp32), else both in fp32."""
    if a.dtype == b.dtype:
        return a, b
    else:
        return a.to(tl.float32), b.to(tl.float32)


@triton.jit
def product(
    p_x, o_t, live, p_w, o_n, H, N,
    EVEN_H: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """x's rows times rows o_n of a [N, H] weight. Rows that are not live are not read: they can hold NaN."""
    o_k = tl.arange(0, BLOCK_K)
    p_x += o_t.to(tl.int64)[:, None] * H + o_k[None, :]
    p_w += o_n[None, :] * H + o_k[:, None]
    acc = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for k in range(0, H, BLOCK_K):
        if EVEN_H:
            x = tl.load(p_x + k, mask=live[:, None], other=0.0)
            w = tl.load(p_w + k, mask=(o_n < N)[None, :], other=0.0)
        else:
            m_k = o_k < H - k
            x = tl.load(p_x + k, mask=live[:, None] & m_k[None, :], other=0.0)
            w = tl.load(p_w + k, mask=(o_n < N)[None, :] & m_k[:, None], other=0.0)
        x, w = same_type(x, w)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=["T", "H", "G", "E", "K"])
def _gate_kernel(
    p_x, p_hidden_w, p_hidden_b, p_w, p_b, p_noise, p_selection, p_mask, p_logits, p_weights, p_indices, p_partials,
    T, H, G, E, K,
    ROUTER: tl.constexpr, RENORMALIZE: tl.constexpr, ALIGN: tl.constexpr, EVEN_H: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_TOP: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of tokens, from x to all that `reference.gate` returns."""
    H = aligned(H, ALIGN)
    o_t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    o_e = tl.arange(0, BLOCK_E)
    live = live_tokens(p_mask, o_t, T)
    if p_hidden_w is None:
        logits = product(p_x, o_t, live, p_w, o_e, H, E, EVEN_H, PRECISION, BLOCK_T, BLOCK_E, BLOCK_K)
    else:
        logits = tl.zeros([BLOCK_T, BLOCK_E], tl.float32)
        for g in range(0, G, BLOCK_G):
            o_g = g + tl.arange(0, BLOCK_G)
            hidden = product(p_x, o_t, live, p_hidden_w, o_g, H, G, EVEN_H, PRECISION, BLOCK_T, BLOCK_G, BLOCK_K)
            if p_hidden_b is not None:
                hidden += tl.load(p_hidden_b + o_g, mask=o_g < G, other=0.0).to(tl.float32)[None, :]
            hidden = tl.where(hidden <= 0, 0.0, hidden)
            m_w = (o_g < G)[:, None] & (o_e < E)[None, :]
            w = tl.load(p_w + o_e[None, :] * G + o_g[:, None], mask=m_w, other=0.0).to(tl.float32)
            logits += tl.dot(hidden, w, input_precision=PRECISION)
    if p_b is not None:
        logits += tl.load(p_b + o_e, mask=o_e < E, other=0.0).to(tl.float32)[None, :]
    o_logits = o_t.to(tl.int64)[:, None] * E + o_e[None, :]
    m_logits = (o_t < T)[:, None] & (o_e < E)[None, :]
    if p_noise is not None:
        logits += tl.load(p_noise + o_logits, mask=m_logits, other=0.0).to(tl.float32)
    logits = tl.where(live[:, None], logits, 0.0)
    tl.store(p_logits + o_logits, logits, mask=m_logits)
    _choose_rows(
        logits, o_t, live, p_selection, p_weights, p_indices, p_partials, T, E, K,
        ROUTER, RENORMALIZE, BLOCK_E, BLOCK_TOP,
    )  # fmt: skip


def _outputs(num_tokens: int, num_experts: int, top_k: int, tile: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """weights_TK, indices_TK, partials_BL, still to be filled; a tile has so many tokens."""
    return (
        like.new_empty(num_tokens, num_experts if top_k == ALL else top_k, dtype=torch.float32),
        like.new_empty(num_tokens, top_k, dtype=torch.int32),
        like.new_empty(heuristics.cdiv(num_tokens, tile), 2 * num_experts + 2, dtype=torch.float32),
    )


def gate(tokens: Tokens, gate: GateWeights, rule: Rule) -> tuple[Routing, Tensor]:
    x_TH, mask_T, noise_TE = tokens
    hidden_weight_GH, hidden_bias_G, weight_EG, bias_E, selection_bias_E = gate
    top_k, router, renormalize = rule
    (num_tokens, hidden), (num_experts, width) = x_TH.shape, weight_EG.shape
    block_e = heuristics.power_of_2(num_experts, 16)
    first = weight_EG if hidden_weight_GH is None else hidden_weight_GH
    tensor_cores = x_TH.dtype == first.dtype != torch.float32
    tile = heuristics.gate_tile(num_tokens, block_e, hidden_weight_GH is not None, tensor_cores)
    logits_TE = x_TH.new_empty(num_tokens, num_experts, dtype=torch.float32)
    weights_TK, indices_TK, partials_BL = _outputs(num_tokens, num_experts, top_k, tile.m, x_TH)
    launch(
        _gate_kernel, len(partials_BL),
        x_TH, hidden_weight_GH, hidden_bias_G, weight_EG, bias_E, noise_TE, selection_bias_E, mask_T,
        logits_TE, weights_TK, indices_TK, partials_BL, num_tokens, hidden, width, num_experts, top_k,
        tile=tile, ROUTER=router, RENORMALIZE=renormalize, ALIGN=heuristics.alignment(hidden),
        EVEN_H=hidden % tile.k == 0, PRECISION=input_precision(), BLOCK_E=block_e,
        BLOCK_TOP=0 if top_k == ALL else heuristics.power_of_2(top_k),
        BLOCK_T=tile.m, BLOCK_G=tile.n, BLOCK_K=tile.k,
    )  # fmt: skip
    return Routing(weights_TK, indices_TK, logits_TE), partials_BL


@triton.jit(do_not_specialize=["T", "E", "K"])
def _choose_kernel(
    p_logits, p_selection, p_mask, p_weights, p_indices, p_partials, T, E, K,
    ROUTER: tl.constexpr, RENORMALIZE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_TOP: tl.constexpr,
):  # fmt: skip
    """A tile of tokens, from their logits; see `reference.choose`."""
    o_t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    o_e = tl.arange(0, BLOCK_E)
    live = live_tokens(p_mask, o_t, T)
    o_logits = o_t.to(tl.int64)[:, None] * E + o_e[None, :]
    logits = tl.load(p_logits + o_logits, mask=live[:, None] & (o_e < E)[None, :], other=0.0)
    _choose_rows(
        logits, o_t, live, p_selection, p_weights, p_indices, p_partials, T, E, K,
        ROUTER, RENORMALIZE, BLOCK_E, BLOCK_TOP,
    )  # fmt: skip


def choose(
    logits_TE: Tensor, selection_bias_E: Tensor | None, mask_T: Tensor | None, rule: Rule
) -> tuple[Routing, Tensor]:
    top_k, router, renormalize = rule
    num_tokens, num_experts = logits_TE.shape
    block_e = heuristics.power_of_2(num_experts, 2)
    tile = heuristics.choose_tile(num_tokens, block_e)
    weights_TK, indices_TK, partials_BL = _outputs(num_tokens, num_experts, top_k, tile.m, logits_TE)
    launch(
        _choose_kernel, len(partials_BL),
        logits_TE, selection_bias_E, mask_T, weights_TK, indices_TK, partials_BL, num_tokens, num_experts, top_k,
        tile=tile, ROUTER=router, RENORMALIZE=renormalize, BLOCK_T=tile.m, BLOCK_E=block_e,
        BLOCK_TOP=0 if top_k == ALL else heuristics.power_of_2(top_k),
    )  # fmt: skip
    return Routing(weights_TK, indices_TK, logits_TE), partials_BL
