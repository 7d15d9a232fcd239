"""The eager backend: every primitive of `contract.py` in plain PyTorch. The oracle, the baseline and the fallback.

What a primitive means stands here, in its docstring. Shape suffixes: see `routing.py`; records: see `records.py`.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.activations import activate, activate_backward
from kernels.cpu.levels import multiplies_bf16
from kernels.dropout import Dropout, dropout_hash
from kernels.records import ExpertWeights, GateGrads, GateWeights, Rule, Sequences, Tokens, zero_masked
from kernels.routing import ALL, Plan, Routing, best_experts, count_slots, with_one_unused

name = "eager"

TENSOR_CORES_OF_BF16 = (8, 0)
"""The least compute capability that has them."""


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this backend can run here: the eager one always can."""
    return True


def prefers_bf16(device: torch.device) -> bool:
    """Whether PyTorch is faster in bf16 than in fp32 there: by tensor cores, or by products of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= TENSOR_CORES_OF_BF16
    return device.type == "cpu" and multiplies_bf16()


# Gate: which experts, and how much each counts.


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which the router works and sums are kept: fp32, or fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)


def wide(tensor: Tensor) -> Tensor:
    return tensor.to(wide_dtype(tensor.dtype))


def gate(tokens: Tokens, gate: GateWeights, rule: Rule) -> tuple[Routing, Tensor]:
    """Logits of a linear gate, or of an mlp gate (relu inside) if it has a hidden layer, and what they choose.

    -> routing, partials_BL as in `choose`.
    """
    features_TG = _gate_hidden(tokens.x_TH, gate)
    if gate.hidden_weight_GH is not None:
        features_TG = features_TG.relu()
    logits_TE = F.linear(features_TG, wide(gate.weight_EG), None if gate.bias_E is None else wide(gate.bias_E))
    if tokens.noise_TE is not None:
        logits_TE = logits_TE + tokens.noise_TE
    return choose(zero_masked(logits_TE, tokens.mask_T), gate.selection_bias_E, tokens.mask_T, rule)


def choose(
    logits_TE: Tensor, selection_bias_E: Tensor | None, mask_T: Tensor | None, rule: Rule
) -> tuple[Routing, Tensor]:
    """Logits -> routing and partials_BL, with L = 2E + 2.

    A row of `partials` sums over a tile of tokens what the losses need: E counts of chosen slots, E probabilities
    over all experts, the squared log-sum-exp of the logits, and the number of tokens that are not masked.
    A row of logits that is not finite gives NaN weights and valid indices.
    """
    top_k, router, renormalize = rule
    num_experts = logits_TE.shape[1]
    logits_TE = zero_masked(logits_TE, mask_T)
    probs_TE = _probabilities(logits_TE, router)
    scores_TE = logits_TE.sigmoid() if router == "sigmoid" else probs_TE
    relative = renormalize or router == "topk_softmax"

    if top_k == ALL:
        weights_TK = probs_TE if relative else scores_TE
        indices_TK = logits_TE.new_empty(len(logits_TE), 0, dtype=torch.int32)
    else:
        chosen_TK = _best_experts(logits_TE, scores_TE, selection_bias_E, rule)
        if relative:  # the softmax over the chosen is the renormalised softmax
            weights_TK = _probabilities(logits_TE.gather(1, chosen_TK), router)
        else:
            weights_TK = scores_TE.gather(1, chosen_TK)
        indices_TK = chosen_TK.int()

    weights_TK = weights_TK + (logits_TE * 0).sum(-1, keepdim=True)  # 0, or NaN where a logit is not finite
    squared_lse_T = logits_TE.logsumexp(-1).square()
    live_T = torch.ones_like(squared_lse_T)
    if mask_T is not None:
        weights_TK = torch.where(mask_T[:, None], weights_TK, 0)
        indices_TK = torch.where(mask_T[:, None], indices_TK, -1)
        probs_TE = torch.where(mask_T[:, None], probs_TE, 0)
        squared_lse_T = torch.where(mask_T, squared_lse_T, 0)
        live_T = mask_T.to(live_T.dtype)
    tokens = live_T.sum()
    counts_E = tokens.expand(num_experts) if top_k == ALL else count_slots(indices_TK, num_experts).to(tokens.dtype)
    partials_BL = torch.cat([counts_E, probs_TE.sum(0), squared_lse_T.sum()[None], tokens[None]])[None]
    return Routing(weights_TK, indices_TK, logits_TE), partials_BL


def _best_experts(logits_TE: Tensor, scores_TE: Tensor, selection_bias_E: Tensor | None, rule: Rule) -> Tensor:
    """The logits decide: a softmax or a sigmoid keeps their order but can round two of them to one number. A bias is
    added to a sigmoid, and the logits decide only where that makes two equal.
    """
    if selection_bias_E is None:
        return best_experts(logits_TE, rule.top_k)
    ranking_TE = scores_TE if rule.router == "sigmoid" else logits_TE
    return best_experts(ranking_TE + selection_bias_E, rule.top_k, ties_TE=logits_TE)


def _probabilities(logits_TE: Tensor, router: str) -> Tensor:
    """A distribution over the experts: the softmax, or each sigmoid as a share of their sum.

    The latter is a softmax of the sigmoids' logarithms, which do not underflow.
    """
    return (F.logsigmoid(logits_TE) if router == "sigmoid" else logits_TE).softmax(-1)


def _gate_hidden(x_TH: Tensor, gate: GateWeights) -> Tensor:
    """What enters a router's last layer, before the relu of an mlp gate."""
    if gate.hidden_weight_GH is None:
        return wide(x_TH)
    bias_G = gate.hidden_bias_G
    return F.linear(wide(x_TH), wide(gate.hidden_weight_GH), None if bias_G is None else wide(bias_G))


def choose_backward(
    grad_weights_SP: Tensor, grad_sums_L: Tensor | None, routing: Routing, mask_T: Tensor | None, rule: Rule
) -> Tensor:
    """-> grad_logits_TE. The gradient of the weights comes in P parts a slot, still to be summed."""
    weights_TK, indices_TK, logits_TE = routing
    _, router, renormalize = rule
    num_experts = logits_TE.shape[1]
    every_expert = indices_TK.shape[1] == 0
    grad_TK = zero_masked(grad_weights_SP.sum(-1).view_as(weights_TK), mask_T)
    probs_TE = _probabilities(logits_TE, router)
    chosen_TK = indices_TK.clamp(min=0).long()

    def spread(values_TK: Tensor) -> Tensor:  # from the chosen experts to all
        return values_TK if every_expert else torch.zeros_like(logits_TE).scatter_add(1, chosen_TK, values_TK)

    # First with respect to the logarithm of a score, which for a softmax is a logit and what they share.
    sum_T1 = (grad_TK * weights_TK).sum(-1, keepdim=True)
    if renormalize or router == "topk_softmax":
        grad_logits_TE = spread(weights_TK * (grad_TK - sum_T1))
    else:
        grad_logits_TE = spread(weights_TK * grad_TK)
        if router == "softmax":
            grad_logits_TE = grad_logits_TE - probs_TE * sum_T1
    if grad_sums_L is not None:
        grad_probs_E = grad_sums_L[num_experts : 2 * num_experts]
        centred_TE = grad_probs_E - (probs_TE * grad_probs_E).sum(-1, keepdim=True)
        grad_logits_TE = grad_logits_TE + probs_TE * centred_TE
    if router == "sigmoid":
        grad_logits_TE = grad_logits_TE * (-logits_TE).sigmoid()
    if grad_sums_L is not None:
        lse_T1 = logits_TE.logsumexp(-1, keepdim=True)
        grad_logits_TE = grad_logits_TE + 2 * grad_sums_L[2 * num_experts] * lse_T1 * logits_TE.softmax(-1)
    return zero_masked(grad_logits_TE, mask_T)


def gate_backward(
    grads: GateGrads, tokens: Tokens, routing: Routing, gate: GateWeights, rule: Rule
) -> tuple[Tensor | None, GateWeights, Tensor]:
    """The backward of `gate`, with the sum that ends the backward of the layer.

    -> grad_x_TH (None without grads.x_SH), the gradients of the gate, grad_logits_TE. A gate's biases always get
    theirs, whether they are there or not.
    """
    grad_logits_TE = choose_backward(grads.weights_SP, grads.sums_L, routing, tokens.mask_T, rule)
    x_TH = tokens.without_masked()
    hidden_TG = _gate_hidden(x_TH, gate)
    grad_hidden_weight = grad_hidden_bias = None
    if gate.hidden_weight_GH is None:
        grad_weight = grad_logits_TE.T @ hidden_TG
        grad_input, weight = grad_logits_TE, gate.weight_EG
    else:
        weight = gate.hidden_weight_GH
        grad_weight = grad_logits_TE.T @ hidden_TG.relu()
        grad_input = torch.where(hidden_TG > 0, grad_logits_TE @ wide(gate.weight_EG), 0)
        grad_hidden_weight = (grad_input.T @ wide(x_TH)).to(weight.dtype)
        grad_hidden_bias = grad_input.sum(0).to(weight.dtype)
    dtype = gate.weight_EG.dtype
    grad_gate = GateWeights(
        grad_hidden_weight, grad_hidden_bias, grad_weight.to(dtype), grad_logits_TE.sum(0).to(dtype)
    )
    if grads.x_SH is None:
        return None, grad_gate, grad_logits_TE
    parts = [grad_input @ wide(weight)]
    if len(x_TH):
        parts.append(grads.x_SH.view(len(x_TH), -1, x_TH.shape[1]).sum(1, dtype=parts[0].dtype))
    if grads.residual_TH is not None:
        parts.append(zero_masked(grads.residual_TH, tokens.mask_T))
    return sum(parts[1:], parts[0]).to(x_TH.dtype), grad_gate, grad_logits_TE


# Plan: the slots by expert.


def plan(indices_TK: Tensor, num_experts: int, partials_BL: Tensor | None = None) -> Plan:
    """The order in which the experts run. `partials` of these tokens save a backend the counting."""
    expert_S = with_one_unused(indices_TK.flatten(), num_experts)
    order_S = expert_S.argsort(stable=True).int()
    counts_E = count_slots(indices_TK, num_experts)
    return Plan(order_S, F.pad(counts_E.cumsum(0), (1, 0)).int())


def _segments(plan: Plan) -> Iterator[tuple[int, slice]]:
    """(expert, its rows) for every expert that has any."""
    bounds = plan.offsets_O.tolist()
    for expert, (start, stop) in enumerate(pairwise(bounds)):
        if stop > start:
            yield expert, slice(start, stop)


# Grouped GEMMs: each expert's weight times the rows that chose it.


def up(
    x_TH: Tensor, plan: Plan, experts: ExpertWeights, top_k: int, activation: str, keep_pre: bool
) -> tuple[Tensor, Tensor | None]:
    """x's rows by plan -> act_SF and, if it is to be kept, pre_SU, both in plan order."""
    weight_EUH, bias_EU = experts.up
    num_slots, width = len(plan.order_S), weight_EUH.shape[1]
    pre_SU = weight_EUH.new_zeros(num_slots, width)
    token_S = plan.order_S // top_k
    for expert, rows in _segments(plan):
        x_NH = x_TH[token_S[rows]].to(weight_EUH.dtype)
        pre_SU[rows] = F.linear(x_NH, weight_EUH[expert], None if bias_EU is None else bias_EU[expert])
    return activate(pre_SU, activation), pre_SU if keep_pre else None


def down(
    act_SF: Tensor,
    plan: Plan,
    weights_TK: Tensor,
    experts: ExpertWeights,
    residual_TH: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """weights * (act x down_weight + bias) -> rows_SH in slot order, of the given type; zeros for unassigned slots.

    A residual (top-1 only: a slot is then a token) is added to every assigned row.
    """
    weight_EHF, bias_EH = experts.down
    rows_SH = act_SF.new_zeros(len(plan.order_S), weight_EHF.shape[1], dtype=dtype)
    weights_S = weights_TK.flatten()
    for expert, rows in _segments(plan):
        slots = plan.order_S[rows]
        y_NH = F.linear(act_SF[rows], weight_EHF[expert], None if bias_EH is None else bias_EH[expert])
        y_NH = wide(y_NH) * weights_S[slots, None]
        if residual_TH is not None:
            y_NH = y_NH + residual_TH[slots]
        rows_SH[slots] = y_NH.to(dtype)
    return rows_SH


def combine(
    rows_SH: Tensor, top_k: int, residual_TH: Tensor | None, mask_T: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The K rows of each token, summed in fp32 in slot order, plus the residual of a token that is not masked."""
    num_tokens, hidden = len(rows_SH) // top_k, rows_SH.shape[1]
    y_TH = wide(rows_SH.view(num_tokens, top_k, hidden)).sum(1)
    if residual_TH is not None:
        y_TH = y_TH + zero_masked(residual_TH, mask_T)
    return y_TH.to(dtype)


def down_backward(
    grad_y_TH: Tensor, pre_SU: Tensor, plan: Plan, weights_TK: Tensor, experts: ExpertWeights, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """-> grad_pre_SU and weighted_act_SF (act times weight, for `down_weight_grad`) in plan order; grad_weights_SP.

    The output of an expert is not needed for the gradient of its weight: <dy, act W + b> = <dy Wt, act> + <dy, b>.
    """
    weight_EHF, bias_EH = experts.down
    grad_pre_SU, weighted_act_SF = torch.zeros_like(pre_SU), pre_SU.new_zeros(len(pre_SU), weight_EHF.shape[2])
    weights_S = weights_TK.flatten()
    grad_weights_SP = torch.zeros_like(weights_S)[:, None]
    for expert, rows in _segments(plan):
        slots = plan.order_S[rows]
        grad_NH = grad_y_TH[slots // weights_TK.shape[1]].to(weight_EHF.dtype)
        weights_N1 = weights_S[slots, None]
        grad_act_NF = wide(grad_NH @ weight_EHF[expert])
        pre_NU = wide(pre_SU[rows])
        act_NF = activate(pre_NU, activation)
        grad_weights_N = (grad_act_NF * act_NF).sum(-1)
        if bias_EH is not None:
            grad_weights_N = grad_weights_N + wide(grad_NH) @ wide(bias_EH[expert])
        grad_weights_SP[slots, 0] = grad_weights_N.to(grad_weights_SP.dtype)
        weighted_act_SF[rows] = (act_NF * weights_N1).to(pre_SU.dtype)
        grad_pre_SU[rows] = activate_backward(grad_act_NF * weights_N1, pre_NU, activation).to(pre_SU.dtype)
    return grad_pre_SU, weighted_act_SF, grad_weights_SP


def down_weight_grad(
    grad_y_TH: Tensor, weighted_act_SF: Tensor, plan: Plan, weights_TK: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """-> grad_weight_EHF, grad_bias_EH, zeros for an expert with no row."""
    num_experts, hidden, width = len(plan.offsets_O) - 1, grad_y_TH.shape[1], weighted_act_SF.shape[1]
    grad_weight_EHF = weighted_act_SF.new_zeros(num_experts, hidden, width)
    grad_bias_EH = weighted_act_SF.new_zeros(num_experts, hidden) if has_bias else None
    weights_S = weights_TK.flatten()
    for expert, rows in _segments(plan):
        slots = plan.order_S[rows]
        grad_NH = grad_y_TH[slots // weights_TK.shape[1]].to(weighted_act_SF.dtype)
        grad_weight_EHF[expert] = grad_NH.T @ weighted_act_SF[rows]
        if grad_bias_EH is not None:
            grad_bias_EH[expert] = weights_S[slots] @ wide(grad_NH)
    return grad_weight_EHF, grad_bias_EH


def up_backward(grad_pre_SU: Tensor, plan: Plan, experts: ExpertWeights) -> Tensor:
    """-> grad_x_SH in slot order, zeros for unassigned slots."""
    weight_EUH = experts.up_weight_EUH
    grad_x_SH = grad_pre_SU.new_zeros(len(plan.order_S), weight_EUH.shape[2])
    for expert, rows in _segments(plan):
        grad_x_SH[plan.order_S[rows]] = grad_pre_SU[rows] @ weight_EUH[expert]
    return grad_x_SH


def up_weight_grad(
    x_TH: Tensor, grad_pre_SU: Tensor, plan: Plan, top_k: int, has_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """-> grad_weight_EUH, grad_bias_EU, zeros for an expert with no row."""
    num_experts, width, hidden = len(plan.offsets_O) - 1, grad_pre_SU.shape[1], x_TH.shape[1]
    grad_weight_EUH = grad_pre_SU.new_zeros(num_experts, width, hidden)
    grad_bias_EU = grad_pre_SU.new_zeros(num_experts, width) if has_bias else None
    token_S = plan.order_S // top_k
    for expert, rows in _segments(plan):
        grad_weight_EUH[expert] = grad_pre_SU[rows].T @ x_TH[token_S[rows]].to(grad_pre_SU.dtype)
        if grad_bias_EU is not None:
            grad_bias_EU[expert] = wide(grad_pre_SU[rows]).sum(0)
    return grad_weight_EUH, grad_bias_EU


# "all": no routing. Two plain GEMMs over the stacked experts, with the gate folded into the activations.


def all_up(
    x_TH: Tensor, weights_TE: Tensor, experts: ExpertWeights, activation: str, keep_pre: bool
) -> tuple[Tensor, Tensor | None]:
    """-> weighted_act_TEF and, if it is to be kept, pre_TEU."""
    weight_EUH, bias_EU = experts.up
    num_experts, width, hidden = weight_EUH.shape
    bias = None if bias_EU is None else bias_EU.flatten()
    pre_TEU = F.linear(x_TH.to(weight_EUH.dtype), weight_EUH.reshape(-1, hidden), bias).view(-1, num_experts, width)
    weighted_act_TEF = (activate(pre_TEU, activation) * weights_TE[:, :, None]).to(pre_TEU.dtype)
    return weighted_act_TEF, pre_TEU if keep_pre else None


def all_down(
    weighted_act_TEF: Tensor,
    weights_TE: Tensor,
    experts: ExpertWeights,
    residual_TH: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """-> y_TH"""
    weight_EHF, bias_EH = experts.down
    weight_HD = weight_EHF.transpose(0, 1).reshape(weight_EHF.shape[1], -1)
    y_TH = wide(weighted_act_TEF.flatten(1) @ weight_HD.T)
    if bias_EH is not None:
        y_TH = y_TH + weights_TE @ wide(bias_EH)
    return (y_TH if residual_TH is None else y_TH + residual_TH).to(dtype)


def all_down_backward(
    grad_y_TH: Tensor, pre_TEU: Tensor, weights_TE: Tensor, experts: ExpertWeights, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """-> grad_pre_TEU, weighted_act_TEF, grad_weights_SP with a slot for every token and expert."""
    weight_EHF, bias_EH = experts.down
    num_experts, hidden, width = weight_EHF.shape
    weight_HD = weight_EHF.transpose(0, 1).reshape(hidden, -1)
    grad_act_TEF = wide((grad_y_TH.to(weight_EHF.dtype) @ weight_HD).view(-1, num_experts, width))
    wide_pre_TEU = wide(pre_TEU)
    act_TEF = activate(wide_pre_TEU, activation)
    grad_weights_TE = (grad_act_TEF * act_TEF).sum(-1)
    if bias_EH is not None:
        grad_weights_TE = grad_weights_TE + wide(grad_y_TH) @ wide(bias_EH).T
    weighted_act_TEF = (act_TEF * weights_TE[:, :, None]).to(pre_TEU.dtype)
    grad_pre_TEU = activate_backward(grad_act_TEF * weights_TE[:, :, None], wide_pre_TEU, activation).to(pre_TEU.dtype)
    return grad_pre_TEU, weighted_act_TEF, grad_weights_TE.reshape(-1, 1)


def all_down_weight_grad(
    grad_y_TH: Tensor, weighted_act_TEF: Tensor, weights_TE: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """-> grad_weight_EHF, grad_bias_EH"""
    num_experts, width = weighted_act_TEF.shape[1:]
    grad_weight_HD = grad_y_TH.to(weighted_act_TEF.dtype).T @ weighted_act_TEF.flatten(1)
    grad_weight_EHF = grad_weight_HD.view(-1, num_experts, width).transpose(0, 1).contiguous()
    grad_bias_EH = (weights_TE.T @ wide(grad_y_TH)).to(weighted_act_TEF.dtype) if has_bias else None
    return grad_weight_EHF, grad_bias_EH


def all_up_backward(grad_pre_TEU: Tensor, experts: ExpertWeights) -> Tensor:
    """-> grad_x_TH"""
    weight_EUH = experts.up_weight_EUH
    return grad_pre_TEU.flatten(1) @ weight_EUH.reshape(-1, weight_EUH.shape[2])


def all_up_weight_grad(x_TH: Tensor, grad_pre_TEU: Tensor, has_bias: bool) -> tuple[Tensor, Tensor | None]:
    """-> grad_weight_EUH, grad_bias_EU"""
    num_experts, width = grad_pre_TEU.shape[1:]
    grad_weight_DH = grad_pre_TEU.flatten(1).T @ x_TH.to(grad_pre_TEU.dtype)
    grad_bias_EU = wide(grad_pre_TEU).sum(0).to(grad_pre_TEU.dtype) if has_bias else None
    return grad_weight_DH.view(num_experts, width, -1), grad_bias_EU


# Attention over sequences laid end to end. More suffixes: A heads, D head size, P sequences, L longest sequence.


def attention(
    q_TAD: Tensor, k_TAD: Tensor, v_TAD: Tensor, sequences: Sequences, dropout: Dropout
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ / sqrt(D)) v within each sequence -> out_TAD, lse_TA (log-sum-exp of the scores).

    Dropout drops probability (token t, head a, position j) if `dropout_hash(seed, t * A + a, j)` is below the rate:
    a function of its place, so that the backward, another backend or another chunk finds the same mask.
    """
    out_TAD, lse_TA = torch.zeros_like(q_TAD), wide(q_TAD.new_zeros(q_TAD.shape[:2]))
    for group in _groups(q_TAD, sequences):
        q_PALD, k_PALD, v_PALD = (group.pad(tensor) for tensor in (q_TAD, k_TAD, v_TAD))
        scores_PALL = group.scores(q_PALD, k_PALD)
        lse_PAL = scores_PALL.logsumexp(-1)
        probs_PALL = (scores_PALL - lse_PAL[..., None]).exp() * group.dropout(dropout)
        group.unpad(probs_PALL @ v_PALD, out_TAD)
        group.unpad(lse_PAL, lse_TA)
    return out_TAD, lse_TA


def attention_backward(
    grad_TAD: Tensor,
    q_TAD: Tensor,
    k_TAD: Tensor,
    v_TAD: Tensor,
    out_TAD: Tensor,
    lse_TA: Tensor,
    sequences: Sequences,
    dropout: Dropout,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> grad_q_TAD, grad_k_TAD, grad_v_TAD. The probabilities are computed again from q, k and lse."""
    grad_q_TAD, grad_k_TAD, grad_v_TAD = (torch.zeros_like(tensor) for tensor in (q_TAD, k_TAD, v_TAD))
    delta_TA = (wide(out_TAD) * grad_TAD).sum(-1)
    for group in _groups(q_TAD, sequences):
        q_PALD, k_PALD, v_PALD, grad_PALD = (group.pad(tensor) for tensor in (q_TAD, k_TAD, v_TAD, grad_TAD))
        lse_PAL, delta_PAL = (group.pad(tensor[:, :, None])[..., 0] for tensor in (lse_TA, delta_TA))
        probs_PALL = (group.scores(q_PALD, k_PALD) - lse_PAL[..., None]).exp()
        dropped_PALL = group.dropout(dropout)
        grad_probs_PALL = grad_PALD @ v_PALD.mT * dropped_PALL
        grad_scores_PALL = probs_PALL * (grad_probs_PALL - delta_PAL[..., None]) * group.scale
        group.unpad(grad_scores_PALL @ k_PALD, grad_q_TAD)
        group.unpad(grad_scores_PALL.mT @ q_PALD, grad_k_TAD)
        group.unpad((probs_PALL * dropped_PALL).mT @ grad_PALD, grad_v_TAD)
    return grad_q_TAD, grad_k_TAD, grad_v_TAD


class _Group:
    """A few sequences, padded to the longest: rows of `index_PL` are tokens, true in `live_PL` where they exist."""

    def __init__(self, like_TAD: Tensor, sequences: Sequences, first: int, last: int):
        cu_seqlens, max_len = sequences
        start_P, stop_P = cu_seqlens[first:last].long(), cu_seqlens[first + 1 : last + 1].long()
        self.column_L = torch.arange(max_len, device=like_TAD.device)
        row_PL = start_P[:, None] + self.column_L
        self.live_PL = row_PL < stop_P[:, None]
        self.index_PL = row_PL.clamp(0, max(len(like_TAD) - 1, 0))
        self.heads, self.scale = like_TAD.shape[1], like_TAD.shape[2] ** -0.5

    def pad(self, tensor_TAX: Tensor) -> Tensor:
        """[T, A, X] -> [P, A, L, X], wide, zero where no token is"""
        padded = torch.where(self.live_PL[:, :, None, None], wide(tensor_TAX)[self.index_PL], 0)
        return padded.transpose(1, 2)

    def unpad(self, source_PALX: Tensor, target_TAX: Tensor) -> None:
        """[P, A, L, ...] -> its tokens' rows of [T, A, ...]"""
        rows = source_PALX.transpose(1, 2)[self.live_PL].to(target_TAX.dtype)
        target_TAX[self.index_PL[self.live_PL]] = rows

    def scores(self, q_PALD: Tensor, k_PALD: Tensor) -> Tensor:
        lowest = torch.finfo(q_PALD.dtype).min
        return (q_PALD @ k_PALD.mT * self.scale).masked_fill(~self.live_PL[:, None, None, :], lowest)

    def dropout(self, dropout: Dropout) -> Tensor | float:
        """What each probability is multiplied by: 0 or 1 / (1 - rate)"""
        rate, seed = dropout
        if seed is None or rate == 0.0:
            return 1.0
        row_PAL = (self.index_PL * self.heads)[:, None] + torch.arange(self.heads, device=seed.device)[:, None]
        hash_PALL = dropout_hash(seed, row_PAL[..., None], self.column_L)
        return (hash_PALL >= int(rate * 2**32)) / (1 - rate)


def _groups(like_TAD: Tensor, sequences: Sequences) -> Iterator[_Group]:
    """As many sequences at a time as keep the scores under 64 million."""
    cu_seqlens, max_len = sequences
    num_sequences = len(cu_seqlens) - 1 if len(like_TAD) else 0
    step = max(1, 2**26 // max(1, like_TAD.shape[1] * max_len * max_len))
    for first in range(0, num_sequences, step):
        yield _Group(like_TAD, sequences, first, min(first + step, num_sequences))


# LayerNorm(x + dropout(y)), as the fusions `residual_norm` and `residual_norm_backward` compute it. Not under their
# names: PyTorch's own functions are faster in eager, and these are for an op that meets a backend without the fusion.


def _residual_sum(x: Tensor, y: Tensor, dropout: Dropout) -> tuple[Tensor, Tensor | float]:
    """-> x + dropout(y), and what y was multiplied by. Element (t, h) is dropped by `dropout_hash(seed, t, h)`."""
    rate, seed = dropout
    if seed is None or rate == 0.0:
        return wide(x) + wide(y), 1.0
    place = torch.arange(x.numel(), device=x.device).view(x.shape)
    factor = (dropout_hash(seed, place // x.shape[-1], place % x.shape[-1]) >= int(rate * 2**32)) / (1 - rate)
    return wide(x) + wide(y) * factor, factor


def plain_residual_norm(
    x: Tensor, y: Tensor, weight_H: Tensor, bias_H: Tensor, eps: float, dropout: Dropout
) -> tuple[Tensor, Tensor]:
    """-> out, and stats [..., 2], the mean and the scale of each row: out = (sum - mean) * scale * weight + bias."""
    total, _ = _residual_sum(x, y, dropout)
    mean = total.mean(-1, keepdim=True)
    scale = ((total - mean).square().mean(-1, keepdim=True) + eps).rsqrt()
    out = (total - mean) * scale * wide(weight_H) + wide(bias_H)
    return out.to(torch.promote_types(x.dtype, y.dtype)), torch.cat([mean, scale], -1)


def plain_residual_norm_backward(
    grad: Tensor, x: Tensor, y: Tensor, weight_H: Tensor, bias_H: Tensor, stats: Tensor, dropout: Dropout
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> grad_x, grad_y, grad_weight_H, grad_bias_H. The sum and the mask are computed again."""
    total, factor = _residual_sum(x, y, dropout)
    mean, scale = stats.split(1, -1)
    normal, grad = (total - mean) * scale, wide(grad)
    through = grad * wide(weight_H)
    along = (through * normal).mean(-1, keepdim=True)
    grad_sum = (through - through.mean(-1, keepdim=True) - normal * along) * scale
    return (
        grad_sum.to(x.dtype),
        (grad_sum * factor).to(y.dtype),
        (grad * normal).view(-1, x.shape[-1]).sum(0).to(weight_H.dtype),
        grad.view(-1, x.shape[-1]).sum(0).to(bias_H.dtype),
    )
