"""The primitives of `kernels.reference.PRIMITIVES`, which says what they mean, in C++ for CPUs. See docs/cpu.md."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.cpu import build
from kernels.parameters import weight_and_bias

name = "native"

level = build.load()
"""The instruction set in use."""

_ops = torch.ops.moe_retrieval_cpu


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """CPU tensors in fp32 and bf16."""
    return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)


def gate(
    x_TH: Tensor,
    hidden_weight_GH: Tensor | None,
    hidden_bias_G: Tensor | None,
    weight_EG: Tensor,
    bias_E: Tensor | None,
    noise_TE: Tensor | None,
    selection_bias_E: Tensor | None,
    mask_T: Tensor | None,
    top_k: int,
    router: str,
    renormalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _gate(
        x_TH, hidden_weight_GH, hidden_bias_G, weight_EG, bias_E, noise_TE, selection_bias_E, mask_T,
        top_k, router, renormalize,
    )  # fmt: skip


def choose(
    logits_TE: Tensor,
    selection_bias_E: Tensor | None,
    mask_T: Tensor | None,
    top_k: int,
    router: str,
    renormalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _choose(logits_TE, selection_bias_E, mask_T, top_k, router, renormalize)


def choose_backward(
    grad_weights_SP: Tensor,
    grad_sums_L: Tensor | None,
    logits_TE: Tensor,
    weights_TK: Tensor,
    indices_TK: Tensor,
    mask_T: Tensor | None,
    router: str,
    renormalize: bool,
) -> Tensor:
    return _choose_backward(
        grad_weights_SP, grad_sums_L, logits_TE, weights_TK, indices_TK, mask_T, router, renormalize
    )


def gate_backward(
    grad_weights_SP: Tensor,
    grad_sums_L: Tensor | None,
    grad_x_SH: Tensor | None,
    grad_y_TH: Tensor | None,
    logits_TE: Tensor,
    weights_TK: Tensor,
    indices_TK: Tensor,
    mask_T: Tensor | None,
    x_TH: Tensor,
    hidden_weight_GH: Tensor | None,
    hidden_bias_G: Tensor | None,
    weight_EG: Tensor,
    router: str,
    renormalize: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor, Tensor, Tensor]:
    return _gate_backward(
        grad_weights_SP, grad_sums_L, grad_x_SH, grad_y_TH, logits_TE, weights_TK, indices_TK, mask_T, x_TH,
        hidden_weight_GH, hidden_bias_G, weight_EG, router, renormalize,
    )  # fmt: skip


def plan(indices_TK: Tensor, num_experts: int, partials_BL: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _plan(indices_TK, num_experts)


def up(
    x_TH: Tensor,
    order_S: Tensor,
    offsets_O: Tensor,
    weight_EUH: Tensor,
    bias_EU: Tensor | None,
    top_k: int,
    activation: str,
    keep_pre: bool,
) -> tuple[Tensor, Tensor | None]:
    return _up(x_TH, order_S, offsets_O, weight_EUH, bias_EU, top_k, activation, keep_pre)


def down(
    act_SF: Tensor,
    order_S: Tensor,
    offsets_O: Tensor,
    weights_TK: Tensor,
    weight_EHF: Tensor,
    bias_EH: Tensor | None,
    residual_TH: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    return _down(act_SF, order_S, offsets_O, weights_TK, weight_EHF, bias_EH, residual_TH, dtype)


def up_and_down(
    x_TH: Tensor,
    order_S: Tensor,
    offsets_O: Tensor,
    weights_TK: Tensor,
    up_weight_EUH: Tensor,
    up_bias_EU: Tensor | None,
    down_weight_EHF: Tensor,
    down_bias_EH: Tensor | None,
    residual_TH: Tensor | None,
    activation: str,
    keep_pre: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    return _up_and_down(
        x_TH, order_S, offsets_O, weights_TK, up_weight_EUH, up_bias_EU, down_weight_EHF, down_bias_EH, residual_TH,
        activation, keep_pre, dtype,
    )  # fmt: skip


def layer(
    x_TH: Tensor,
    hidden_weight_GH: Tensor | None,
    hidden_bias_G: Tensor | None,
    weight_EG: Tensor,
    bias_E: Tensor | None,
    noise_TE: Tensor | None,
    selection_bias_E: Tensor | None,
    mask_T: Tensor | None,
    up_weight_EUH: Tensor,
    up_bias_EU: Tensor | None,
    down_weight_EHF: Tensor,
    down_bias_EH: Tensor | None,
    top_k: int,
    activation: str,
    router: str,
    renormalize: bool,
    residual: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _layer(
        x_TH, hidden_weight_GH, hidden_bias_G, weight_EG, bias_E, noise_TE, selection_bias_E, mask_T, up_weight_EUH,
        up_bias_EU, down_weight_EHF, down_bias_EH, top_k, activation, router, renormalize,
        residual, dtype,
    )  # fmt: skip


def combine(
    rows_SH: Tensor, top_k: int, residual_TH: Tensor | None, mask_T: Tensor | None, dtype: torch.dtype
) -> Tensor:
    return _combine(rows_SH, top_k, residual_TH, mask_T, dtype)


def down_backward(
    grad_y_TH: Tensor,
    pre_SU: Tensor,
    order_S: Tensor,
    offsets_O: Tensor,
    weights_TK: Tensor,
    weight_EHF: Tensor,
    bias_EH: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _down_backward(grad_y_TH, pre_SU, order_S, offsets_O, weights_TK, weight_EHF, bias_EH, activation)


def down_weight_grad(
    grad_y_TH: Tensor, weighted_act_SF: Tensor, order_S: Tensor, offsets_O: Tensor, weights_TK: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor | None]:
    return _down_weight_grad(grad_y_TH, weighted_act_SF, order_S, offsets_O, weights_TK, has_bias)


def up_backward(grad_pre_SU: Tensor, order_S: Tensor, offsets_O: Tensor, weight_EUH: Tensor) -> Tensor:
    return _up_backward(grad_pre_SU, order_S, offsets_O, weight_EUH)


def up_weight_grad(
    x_TH: Tensor, grad_pre_SU: Tensor, order_S: Tensor, offsets_O: Tensor, top_k: int, has_bias: bool
) -> tuple[Tensor, Tensor | None]:
    return _up_weight_grad(x_TH, grad_pre_SU, order_S, offsets_O, top_k, has_bias)


def all_up(
    x_TH: Tensor, weights_TE: Tensor, weight_EUH: Tensor, bias_EU: Tensor | None, activation: str, keep_pre: bool
) -> tuple[Tensor, Tensor | None]:
    return _all_up(x_TH, weights_TE, weight_EUH, bias_EU, activation, keep_pre)


def all_down(
    weighted_act_TEF: Tensor,
    weights_TE: Tensor,
    weight_EHF: Tensor,
    bias_EH: Tensor | None,
    residual_TH: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    return _all_down(weighted_act_TEF, weights_TE, weight_EHF, bias_EH, residual_TH, dtype)


def all_down_backward(
    grad_y_TH: Tensor,
    pre_TEU: Tensor,
    weights_TE: Tensor,
    weight_EHF: Tensor,
    bias_EH: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _all_down_backward(grad_y_TH, pre_TEU, weights_TE, weight_EHF, bias_EH, activation)


def all_down_weight_grad(
    grad_y_TH: Tensor, weighted_act_TEF: Tensor, weights_TE: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor | None]:
    return _all_down_weight_grad(grad_y_TH, weighted_act_TEF, weights_TE, has_bias)


def all_up_backward(grad_pre_TEU: Tensor, weight_EUH: Tensor) -> Tensor:
    return _all_up_backward(grad_pre_TEU, weight_EUH)


def all_up_weight_grad(x_TH: Tensor, grad_pre_TEU: Tensor, has_bias: bool) -> tuple[Tensor, Tensor | None]:
    return _all_up_weight_grad(x_TH, grad_pre_TEU, has_bias)


def attention(
    q_TAD: Tensor,
    k_TAD: Tensor,
    v_TAD: Tensor,
    cu_seqlens: Tensor,
    max_len: int,
    dropout: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor]:
    return _attention(q_TAD, k_TAD, v_TAD, cu_seqlens, dropout, int(seed))


def attention_backward(
    grad_TAD: Tensor,
    q_TAD: Tensor,
    k_TAD: Tensor,
    v_TAD: Tensor,
    out_TAD: Tensor,
    lse_TA: Tensor,
    cu_seqlens: Tensor,
    max_len: int,
    dropout: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return _attention_backward(grad_TAD, q_TAD, k_TAD, v_TAD, out_TAD, lse_TA, cu_seqlens, dropout, int(seed))


def residual_norm(
    x: Tensor, y: Tensor, weight_H: Tensor, bias_H: Tensor, eps: float, dropout: float, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    return _residual_norm(x, y, weight_H, bias_H, eps, dropout, 0 if seed is None else int(seed))


def residual_norm_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    weight_H: Tensor,
    bias_H: Tensor,
    stats: Tensor,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    number = 0 if seed is None else int(seed)
    return _residual_norm_backward(grad, x, y, weight_H, bias_H, stats, dropout, number)


def block(
    x_TH: Tensor,
    y_TH: Tensor | None,
    out: Any,
    norm: Any,
    up: Any,
    down: Any,
    ffn_norm: Any,
    following: Any,
    activation: str,
    dtype: torch.dtype,
    into: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    modules = (out, norm, up, down, ffn_norm, following)
    parameters = [(None, None) if module is None else weight_and_bias(module) for module in modules]
    eps = [0.0 if module is None else module.eps for module in (norm, ffn_norm)]
    return _block(x_TH, y_TH, *(p for pair in parameters for p in pair), *eps, activation, dtype, into)


def embed(ids_T: Tensor, cu_seqlens: Tensor, tokens_VH: Tensor, positions_LH: Tensor, norm: Any) -> Tensor:
    return _embed(ids_T, cu_seqlens, tokens_VH, positions_LH, *weight_and_bias(norm), norm.eps)


def encode(ids_T: Tensor, cu_seqlens: Tensor, encoder: Any, dtype: torch.dtype) -> Tensor:
    return _encode(*_encoder(ids_T, cu_seqlens, encoder, dtype))


def retrieve(
    ids_T: Tensor,
    cu_seqlens: Tensor,
    encoder: Any,
    dtype: torch.dtype,
    block: Sequence[Tensor | None],
    settings: Sequence[Any],
    block_dtype: torch.dtype,
    normalize: bool,
) -> Tensor:
    return _retrieve(
        *_encoder(ids_T, cu_seqlens, encoder, dtype), block, *_pooled_settings(*settings), block_dtype, normalize
    )


def pool(
    x_TH: Tensor,
    cu_seqlens: Tensor,
    block: Sequence[Tensor | None],
    settings: Sequence[Any],
    dtype: torch.dtype,
    normalize: bool,
) -> Tensor:
    return _pool(x_TH, cu_seqlens, block, *_pooled_settings(*settings), dtype, normalize)


def _encoder(ids_T: Tensor, cu_seqlens: Tensor, encoder: Any, dtype: torch.dtype) -> tuple[Any, ...]:
    parameters = [parameter for block in encoder.blocks for part in block for parameter in weight_and_bias(part)]
    eps = [encoder.norm.eps]
    for block in encoder.blocks:
        eps += (block.norm.eps, block.ffn_norm.eps)
    return (
        ids_T, cu_seqlens, encoder.tokens.weight, encoder.positions.weight, *weight_and_bias(encoder.norm),
        parameters, eps, encoder.num_heads, encoder.activation, dtype,
    )  # fmt: skip


def _pooled_settings(
    top_k: int = 1, activation: str = "gelu", router: str = "softmax", renormalize: bool = True
) -> tuple[int, str, str, bool]:
    """The settings of the pooled layer; without a layer, any."""
    return top_k, activation, router, renormalize


def _op(primitive: str) -> Any:
    """The op itself: `torch.ops` would look for its overload at every call."""
    return getattr(_ops, primitive).default


_gate, _choose, _plan = _op("gate"), _op("choose"), _op("plan")
_gate_backward, _choose_backward = _op("gate_backward"), _op("choose_backward")
_up, _down, _up_and_down, _combine = _op("up"), _op("down"), _op("up_and_down"), _op("combine")
_layer = _op("layer")
_down_backward, _up_backward = _op("down_backward"), _op("up_backward")
_down_weight_grad, _up_weight_grad = _op("down_weight_grad"), _op("up_weight_grad")
_all_up, _all_down = _op("all_up"), _op("all_down")
_all_down_backward, _all_up_backward = _op("all_down_backward"), _op("all_up_backward")
_all_down_weight_grad, _all_up_weight_grad = _op("all_down_weight_grad"), _op("all_up_weight_grad")
_attention, _attention_backward = _op("attention"), _op("attention_backward")
_residual_norm, _residual_norm_backward = _op("residual_norm"), _op("residual_norm_backward")
_block, _embed = _op("block"), _op("embed")
_encode, _retrieve, _pool = _op("encode"), _op("retrieve"), _op("pool")
