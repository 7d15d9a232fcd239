"""top_k="all": every expert runs on every token. Twins of `reference.all_up`, `.all_down` and their backwards.

Nothing is routed: token t and expert e are slot t * E + e, and the grouped kernels compute what they would load. What
they cannot do is the sum over the experts too, which here is the inner dimension of one product.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.activations import width_of
from kernels.gpu import heuristics
from kernels.gpu.grouped import launch_up
from kernels.gpu.grouped_backward import launch_down_backward
from kernels.gpu.launch import input_precision, launch
from kernels.gpu.tiles import aligned, place, store_rows
from kernels.gpu.weight_grad import launch_weight_grad
from kernels.records import ExpertWeights


@triton.jit(do_not_specialize=["T", "E", "N", "K"])
def _stacked_kernel(
    p_a, p_w, p_weights, p_bias, p_residual, p_out, T, E, N, K,
    TRANSPOSED: tl.constexpr, ALIGN: tl.constexpr, EVEN_N: tl.constexpr, EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the sum over the experts of a[:, e] times w[e]: a is [T, E, K], w [E, K, N], or [E, N, K] transposed.

    The loop runs over experts and terms at once: a loop within a loop would fill and drain the pipeline E times.
    """
    N, K = aligned(N, ALIGN), aligned(K, ALIGN)
    tiles = tl.cdiv(T, BLOCK_M)
    tile, column = place(tl.program_id(0), tiles, tl.cdiv(N, BLOCK_N), GROUP)
    o_t = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    token = tl.minimum(o_t, T - 1).to(tl.int64)
    o_n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    m_n = o_n < N
    p_a += token[:, None] * (E * K) + o_k[None, :]
    steps = tl.cdiv(K, BLOCK_K)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(0, E * steps):
        expert = step // steps
        k = step % steps * BLOCK_K
        m_k = o_k < K - k
        if EVEN_K:
            a = tl.load(p_a + expert * K + k)
        else:
            a = tl.load(p_a + expert * K + k, mask=m_k[None, :], other=0.0)
        p_b = p_w + expert.to(tl.int64) * N * K
        if TRANSPOSED:
            p_b += o_n[None, :] * K + (o_k + k)[:, None]
        else:
            p_b += (o_k + k)[:, None] * N + o_n[None, :]
        if EVEN_K and EVEN_N:
            b = tl.load(p_b)
        else:
            b = tl.load(p_b, mask=m_k[:, None] & m_n[None, :], other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    if p_bias is not None:
        for expert in range(0, E):
            weight = tl.load(p_weights + token * E + expert)
            bias = tl.load(p_bias + expert * N + o_n, mask=m_n, other=0.0).to(tl.float32)
            acc += weight[:, None] * bias[None, :]
    m_t = o_t < T
    if p_residual is not None:
        residual = tl.load(p_residual + token[:, None] * N + o_n[None, :], mask=m_n[None, :], other=0.0)
        acc += residual.to(tl.float32)
    store_rows(p_out, token, m_t, acc.to(p_out.dtype.element_ty), column * BLOCK_N, N, BLOCK_M, BLOCK_N)


def _launch_stacked(
    a: Tensor,
    weight: Tensor,
    weights_TE: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    transposed: bool,
) -> None:
    num_tokens, num_experts, inner = a.shape
    columns, precision = out.shape[1], input_precision()
    tile = heuristics.stacked_tile(num_tokens, columns, weight.dtype, precision)
    launch(
        _stacked_kernel, heuristics.cdiv(num_tokens, tile.m) * heuristics.cdiv(columns, tile.n),
        a, weight, weights_TE, bias, residual, out, num_tokens, num_experts, columns, inner,
        tile=tile, TRANSPOSED=transposed, ALIGN=heuristics.alignment(columns, inner),
        EVEN_N=columns % tile.n == 0, EVEN_K=inner % tile.k == 0, PRECISION=precision, GROUP=heuristics.ROW_GROUP,
        BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k,
    )  # fmt: skip


def all_up(
    x_TH: Tensor, weights_TE: Tensor, experts: ExpertWeights, activation: str, keep_pre: bool
) -> tuple[Tensor, Tensor | None]:
    weight_EUH = experts.up_weight_EUH
    num_experts, width, _ = weight_EUH.shape
    act_TEF = weight_EUH.new_empty(len(x_TH), num_experts, width // width_of(1, activation))
    pre_TEU = weight_EUH.new_empty(len(x_TH), num_experts, width) if keep_pre else None
    launch_up(x_TH, None, weights_TE, experts, act_TEF, pre_TEU, 1, activation)
    return act_TEF, pre_TEU


def all_down(
    weighted_act_TEF: Tensor,
    weights_TE: Tensor,
    experts: ExpertWeights,
    residual_TH: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    weight_EHF, bias_EH = experts.down
    y_TH = weighted_act_TEF.new_empty(len(weighted_act_TEF), weight_EHF.shape[1], dtype=dtype)
    _launch_stacked(weighted_act_TEF, weight_EHF, weights_TE, bias_EH, residual_TH, y_TH, transposed=True)
    return y_TH


def all_down_backward(
    grad_y_TH: Tensor, pre_TEU: Tensor, weights_TE: Tensor, experts: ExpertWeights, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    return launch_down_backward(grad_y_TH, pre_TEU, None, weights_TE, experts, activation)


def all_down_weight_grad(
    grad_y_TH: Tensor, weighted_act_TEF: Tensor, weights_TE: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor | None]:
    num_experts = weights_TE.shape[1]
    return launch_weight_grad(
        grad_y_TH, weighted_act_TEF, None, weights_TE, num_experts, 1, has_bias, left_is_tokens=True
    )


def all_up_backward(grad_pre_TEU: Tensor, experts: ExpertWeights) -> Tensor:
    weight_EUH = experts.up_weight_EUH
    grad_x_TH = grad_pre_TEU.new_empty(len(grad_pre_TEU), weight_EUH.shape[2])
    _launch_stacked(grad_pre_TEU, weight_EUH, None, None, None, grad_x_TH, transposed=False)
    return grad_x_TH


def all_up_weight_grad(x_TH: Tensor, grad_pre_TEU: Tensor, has_bias: bool) -> tuple[Tensor, Tensor | None]:
    num_experts = grad_pre_TEU.shape[1]
    return launch_weight_grad(grad_pre_TEU, x_TH, None, None, num_experts, 1, has_bias, left_is_tokens=False)
