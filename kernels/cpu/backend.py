"""The primitives and fusions of `contract.py` in C++ for CPUs: a table from records to the ops. See docs/cpu.md."""

import os

import torch

from kernels.cpu import build
from kernels.cpu.levels import MULTIPLIES_BF16, pytorch_has_tiles
from kernels.routing import Plan, Routing

name = "native"

choice = build.load()
"""The instruction sets in use, by type."""
level = str(choice)

_was_named = bool(os.environ.get("MOE_KERNELS_CPU_LEVEL"))

BEATEN_FROM = 512
"""Tokens, as few as it was measured with."""


def supports(device, dtype):
    """CPU tensors in fp32 and bf16."""
    return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)


def prefers_bf16(device):
    """Where it is multiplied as it is: to widen it costs more than its bytes save."""
    return choice.bf16 in MULTIPLIES_BF16


def is_beaten(dtype, rows):
    """In bf16, where PyTorch has tile registers and this backend does without: on two cores of a Xeon, a loop over
    experts took 28 ms for 4,096 tokens where this took 106 by pairs of bf16, and 75 in fp32; 6.9 and 13.9 for 512.
    Not a level that is asked for by name."""
    if dtype != torch.bfloat16 or rows < BEATEN_FROM or _was_named:
        return False
    return choice.bf16 != "amx_bf16" and pytorch_has_tiles()


def _op(primitive):
    """The op itself: `torch.ops` would look for its overload at every call."""
    return getattr(torch.ops.moe_retrieval_cpu, primitive).default


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
_add = _op("add")
_residual_norm, _residual_norm_backward = _op("residual_norm"), _op("residual_norm_backward")


# The gate.


def gate(tokens, gate, rule):
    x_TH, mask_T, noise_TE = tokens
    *weights, selection_bias_E = gate
    logits_TE, weights_TK, indices_TK, partials_BL = _gate(x_TH, *weights, noise_TE, selection_bias_E, mask_T, *rule)
    return Routing(weights_TK, indices_TK, logits_TE), partials_BL


def choose(logits_TE, selection_bias_E, mask_T, rule):
    weights_TK, indices_TK, partials_BL = _choose(logits_TE, selection_bias_E, mask_T, *rule)
    return Routing(weights_TK, indices_TK, logits_TE), partials_BL


def plan(indices_TK, num_experts, partials_BL=None):
    return Plan(*_plan(indices_TK, num_experts))


def choose_backward(grad_weights_SP, grad_sums_L, routing, mask_T, rule):
    weights_TK, indices_TK, logits_TE = routing
    return _choose_backward(grad_weights_SP, grad_sums_L, logits_TE, weights_TK, indices_TK, mask_T, *rule[1:])


def gate_backward(grads, tokens, routing, gate, rule):
    weights_TK, indices_TK, logits_TE = routing
    hidden_weight_GH, hidden_bias_G, weight_EG, *_ = gate
    grad_x_TH, *grad_gate, grad_logits_TE = _gate_backward(
        *grads, logits_TE, weights_TK, indices_TK, tokens.mask_T, tokens.x_TH, hidden_weight_GH, hidden_bias_G,
        weight_EG, *rule[1:],
    )  # fmt: skip
    return grad_x_TH, gate._make([*grad_gate, None]), grad_logits_TE


# Chosen experts.


def up(x_TH, plan, experts, top_k, activation, keep_pre):
    return _up(x_TH, *plan, *experts.up, top_k, activation, keep_pre)


def down(act_SF, plan, weights_TK, experts, residual_TH, dtype):
    return _down(act_SF, *plan, weights_TK, *experts.down, residual_TH, dtype)


def up_and_down(x_TH, plan, weights_TK, experts, residual_TH, activation, keep_pre, dtype):
    return _up_and_down(x_TH, *plan, weights_TK, *experts, residual_TH, activation, keep_pre, dtype)


def combine(rows_SH, top_k, residual_TH, mask_T, dtype):
    return _combine(rows_SH, top_k, residual_TH, mask_T, dtype)


def layer(tokens, gate, experts, rule, activation, residual, dtype):
    y_TH, weights_TK, indices_TK, logits_TE, partials_BL = _layer(
        *tokens, *gate, *experts, *rule, activation, residual, dtype
    )
    return y_TH, Routing(weights_TK, indices_TK, logits_TE), partials_BL


def down_backward(grad_y_TH, pre_SU, plan, weights_TK, experts, activation):
    return _down_backward(grad_y_TH, pre_SU, *plan, weights_TK, *experts.down, activation)


def down_weight_grad(grad_y_TH, weighted_act_SF, plan, weights_TK, has_bias):
    return _down_weight_grad(grad_y_TH, weighted_act_SF, *plan, weights_TK, has_bias)


def up_backward(grad_pre_SU, plan, experts):
    return _up_backward(grad_pre_SU, *plan, experts.up_weight_EUH)


def up_weight_grad(x_TH, grad_pre_SU, plan, top_k, has_bias):
    return _up_weight_grad(x_TH, grad_pre_SU, *plan, top_k, has_bias)


# All experts.


def all_up(x_TH, weights_TE, experts, activation, keep_pre):
    return _all_up(x_TH, weights_TE, *experts.up, activation, keep_pre)


def all_down(weighted_act_TEF, weights_TE, experts, residual_TH, dtype):
    return _all_down(weighted_act_TEF, weights_TE, *experts.down, residual_TH, dtype)


def all_down_backward(grad_y_TH, pre_TEU, weights_TE, experts, activation):
    return _all_down_backward(grad_y_TH, pre_TEU, weights_TE, *experts.down, activation)


def all_down_weight_grad(grad_y_TH, weighted_act_TEF, weights_TE, has_bias):
    return _all_down_weight_grad(grad_y_TH, weighted_act_TEF, weights_TE, has_bias)


def all_up_backward(grad_pre_TEU, experts):
    return _all_up_backward(grad_pre_TEU, experts.up_weight_EUH)


def all_up_weight_grad(x_TH, grad_pre_TEU, has_bias):
    return _all_up_weight_grad(x_TH, grad_pre_TEU, has_bias)


# What an encoder has beside them.


def _seed(dropout):
    return 0 if dropout.seed is None else int(dropout.seed)


def attention(q_TAD, k_TAD, v_TAD, sequences, dropout):
    return _attention(q_TAD, k_TAD, v_TAD, sequences.cu_seqlens, dropout.rate, _seed(dropout))


def attention_backward(grad_TAD, q_TAD, k_TAD, v_TAD, out_TAD, lse_TA, sequences, dropout):
    return _attention_backward(
        grad_TAD, q_TAD, k_TAD, v_TAD, out_TAD, lse_TA, sequences.cu_seqlens, dropout.rate, _seed(dropout)
    )


def residual_norm(x, y, weight_H, bias_H, eps, dropout):
    return _residual_norm(x, y, weight_H, bias_H, eps, dropout.rate, _seed(dropout))


def residual_norm_backward(grad, x, y, weight_H, bias_H, stats, dropout):
    return _residual_norm_backward(grad, x, y, weight_H, bias_H, stats, dropout.rate, _seed(dropout))


def add(own, shared):
    return _add(own, shared)


def freeze(tokens_VH, positions_LH, norm, num_heads, dtype):
    return torch.classes.moe_retrieval_cpu.FrozenEncoder(tokens_VH, positions_LH, norm, num_heads, dtype)
