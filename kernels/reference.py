"""The eager backend: every primitive in plain PyTorch. The oracle, the baseline and the fallback.

A backend is an object with the functions listed in `PRIMITIVES`, under these names and with these meanings, and
nothing else: `functional.py` calls them, decides nothing about devices, and owns forward and backward. It may also have
`up_and_down`, the two in one call with the arguments of both, where activations then need not leave a cache;
`layer`, a whole forward without gradients; and `residual_norm` with `residual_norm_backward`, which are left to
PyTorch otherwise (`residual.py`).
Shape suffixes: see `routing.py`. Rules that every backend keeps:

- Sums are accumulated in fp32 (fp64 for fp64 inputs). The router works in that type throughout.
- The same inputs give the same bits, for any number of threads.
- An index outside 0..E-1 is an unused slot: nothing of its token is read for it.
- Rows of nobody, and experts with no row, get zeros; no output element is left unwritten.
- x may have another float type than the expert weights (autocast): it is converted to theirs where it is multiplied.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.routing import ALL, count_slots

PRIMITIVES = (
    "gate",
    "choose",
    "plan",
    "up",
    "down",
    "combine",
    "down_backward",
    "down_weight_grad",
    "up_backward",
    "up_weight_grad",
    "gate_backward",
    "choose_backward",
    "all_up",
    "all_down",
    "all_down_backward",
    "all_down_weight_grad",
    "all_up_backward",
    "all_up_weight_grad",
    "attention",
    "attention_backward",
)

name = "eager"


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this backend can run here: the eager one always can."""
    return True


# Activations: name -> (function, gradient times derivative). Gated ones apply theirs to the first half of the rows.

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "gelu": (F.gelu, torch.ops.aten.gelu_backward),
    "gelu_tanh": (
        lambda pre: F.gelu(pre, approximate="tanh"),
        lambda grad, pre: torch.ops.aten.gelu_backward(grad, pre, approximate="tanh"),
    ),
    "relu": (F.relu, lambda grad, pre: torch.ops.aten.threshold_backward(grad, pre, 0)),
    "silu": (F.silu, torch.ops.aten.silu_backward),
}
GATED = {"swiglu": "silu", "geglu": "gelu"}


def activate(pre: Tensor, activation: str) -> Tensor:
    """[..., U] -> [..., F]"""
    if activation in GATED:
        gate, value = pre.chunk(2, -1)
        return ACTIVATIONS[GATED[activation]][0](gate) * value
    return ACTIVATIONS[activation][0](pre)


def activate_backward(grad: Tensor, pre: Tensor, activation: str) -> Tensor:
    """The gradient of `activate` with respect to `pre`: [..., F], [..., U] -> [..., U]"""
    if activation in GATED:
        function, derivative = ACTIVATIONS[GATED[activation]]
        gate, value = pre.chunk(2, -1)
        return torch.cat([derivative(grad * value, gate.contiguous()), grad * function(gate)], -1)
    return ACTIVATIONS[activation][1](grad, pre)


# Gate: which experts, and how much each counts.


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which the router works and sums are kept: fp32, or fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)


def wide(tensor: Tensor) -> Tensor:
    return tensor.to(wide_dtype(tensor.dtype))


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
    """Logits of a linear gate, or of an mlp gate (relu inside) if it has a hidden layer, and what they choose.

    -> logits_TE, and weights_TK, indices_TK, partials_BL as in `choose`.
    """
    features_TG = _gate_hidden(x_TH, hidden_weight_GH, hidden_bias_G)
    if hidden_weight_GH is not None:
        features_TG = features_TG.relu()
    logits_TE = F.linear(features_TG, wide(weight_EG), None if bias_E is None else wide(bias_E))
    if noise_TE is not None:
        logits_TE = logits_TE + noise_TE
    if mask_T is not None:
        logits_TE = torch.where(mask_T[:, None], logits_TE, 0)
    return logits_TE, *choose(logits_TE, selection_bias_E, mask_T, top_k, router, renormalize)


def choose(
    logits_TE: Tensor,
    selection_bias_E: Tensor | None,
    mask_T: Tensor | None,
    top_k: int,
    router: str,
    renormalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits -> weights_TK, indices_TK (int32) and partials_BL, with L = 2E + 2.

    A row of `partials` sums over a block of tokens what the losses need: E counts of chosen slots, E probabilities
    over all experts, the squared log-sum-exp of the logits, and the number of tokens that are not masked.
    A row of logits that is not finite gives NaN weights and valid indices.
    """
    num_experts = logits_TE.shape[1]
    if mask_T is not None:
        logits_TE = torch.where(mask_T[:, None], logits_TE, 0)
    probs_TE = _probabilities(logits_TE, router)
    scores_TE = logits_TE.sigmoid() if router == "sigmoid" else probs_TE

    if top_k == ALL:
        weights_TK = probs_TE if router == "sigmoid" and renormalize else scores_TE
        indices_TK = logits_TE.new_empty(len(logits_TE), 0, dtype=torch.int32)
    else:
        # Softmax keeps the order but can round two logits to one probability, so the logits decide.
        ranking_TE = logits_TE if router != "sigmoid" else scores_TE
        if selection_bias_E is not None:
            ranking_TE = ranking_TE + selection_bias_E
        order_TE = ranking_TE.sort(dim=-1, descending=True, stable=True).indices
        chosen_TK = order_TE[:, :top_k]
        if router == "sigmoid":
            weights_TK = scores_TE.gather(1, chosen_TK)
            if renormalize:
                weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + TINY)
        elif renormalize or router == "topk_softmax":  # the softmax over the chosen is the renormalised softmax
            weights_TK = logits_TE.gather(1, chosen_TK).softmax(-1)
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
    return weights_TK, indices_TK, partials_BL


TINY = 1e-20
"""Added to a sum of sigmoids before it divides: every one of them can underflow to zero."""


def _probabilities(logits_TE: Tensor, router: str) -> Tensor:
    """How the losses see a token: a distribution over all experts."""
    if router == "sigmoid":
        scores_TE = logits_TE.sigmoid()
        return scores_TE / (scores_TE.sum(-1, keepdim=True) + TINY)
    return logits_TE.softmax(-1)


def _gate_hidden(x_TH: Tensor, weight_GH: Tensor | None, bias_G: Tensor | None) -> Tensor:
    """What enters a router's last layer, before the relu of an mlp gate."""
    if weight_GH is None:
        return wide(x_TH)
    return F.linear(wide(x_TH), wide(weight_GH), None if bias_G is None else wide(bias_G))


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
    """-> grad_logits_TE. The gradient of the weights comes in P parts a slot, still to be summed."""
    num_experts = logits_TE.shape[1]
    everyone = indices_TK.shape[1] == 0
    grad_TK = grad_weights_SP.sum(-1).view_as(weights_TK)
    if mask_T is not None:
        grad_TK = torch.where(mask_T[:, None], grad_TK, 0)
    probs_TE = _probabilities(logits_TE, router)
    scores_TE = logits_TE.sigmoid() if router == "sigmoid" else probs_TE
    chosen_TK = indices_TK.clamp(min=0).long()

    def spread(values_TK: Tensor) -> Tensor:  # from the chosen experts to all
        return values_TK if everyone else torch.zeros_like(logits_TE).scatter_add(1, chosen_TK, values_TK)

    normalized = renormalize or router == "topk_softmax"
    if router == "sigmoid":
        if normalized:
            total_T1 = (scores_TE if everyone else scores_TE.gather(1, chosen_TK)).sum(-1, keepdim=True) + TINY
            grad_TK = (grad_TK - (grad_TK * weights_TK).sum(-1, keepdim=True)) / total_T1
        grad_scores_TE = spread(grad_TK)
        grad_logits_TE = torch.zeros_like(logits_TE)
    elif normalized:
        grad_scores_TE = None
        grad_logits_TE = spread(weights_TK * (grad_TK - (grad_TK * weights_TK).sum(-1, keepdim=True)))
    else:
        grad_scores_TE = spread(grad_TK)
        grad_logits_TE = torch.zeros_like(logits_TE)

    if grad_sums_L is not None:
        grad_probs_E = grad_sums_L[num_experts : 2 * num_experts]
        if router == "sigmoid":
            centred_TE = grad_probs_E - (probs_TE * grad_probs_E).sum(-1, keepdim=True)
            through_TE = centred_TE / (scores_TE.sum(-1, keepdim=True) + TINY)
        else:
            through_TE = grad_probs_E.expand_as(logits_TE)
        grad_scores_TE = through_TE if grad_scores_TE is None else grad_scores_TE + through_TE
        lse_T1 = logits_TE.logsumexp(-1, keepdim=True)
        grad_logits_TE = grad_logits_TE + 2 * grad_sums_L[2 * num_experts] * lse_T1 * logits_TE.softmax(-1)
    if grad_scores_TE is not None:
        if router == "sigmoid":
            slope_TE = grad_scores_TE * scores_TE * (1 - scores_TE)
        else:
            slope_TE = probs_TE * (grad_scores_TE - (grad_scores_TE * probs_TE).sum(-1, keepdim=True))
        grad_logits_TE = grad_logits_TE + slope_TE
    return grad_logits_TE if mask_T is None else torch.where(mask_T[:, None], grad_logits_TE, 0)


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
    """The backward of `gate`, with the sum that ends the backward of the layer.

    -> grad_x_TH, grad_hidden_weight, grad_hidden_bias, grad_weight, grad_bias, grad_logits_TE. `grad_x_SH` holds what
    the experts send back ([T * rows, H] in slot order; None if nobody asks for x's gradient: then grad_x_TH is None)
    and `grad_y_TH` what a residual connection adds.
    """
    grad_logits_TE = choose_backward(
        grad_weights_SP, grad_sums_L, logits_TE, weights_TK, indices_TK, mask_T, router, renormalize
    )
    if mask_T is not None:
        x_TH = torch.where(mask_T[:, None], x_TH, 0)
    hidden_TG = _gate_hidden(x_TH, hidden_weight_GH, hidden_bias_G)
    grad_hidden_weight = grad_hidden_bias = None
    if hidden_weight_GH is None:
        grad_weight = grad_logits_TE.T @ hidden_TG
        grad_input, weight = grad_logits_TE, weight_EG
    else:
        grad_weight = grad_logits_TE.T @ hidden_TG.relu()
        grad_input = torch.where(hidden_TG > 0, grad_logits_TE @ wide(weight_EG), 0)
        grad_hidden_weight = (grad_input.T @ wide(x_TH)).to(hidden_weight_GH.dtype)
        grad_hidden_bias = grad_input.sum(0).to(hidden_weight_GH.dtype)
        weight = hidden_weight_GH
    grad_weight, grad_bias = grad_weight.to(weight_EG.dtype), grad_logits_TE.sum(0).to(weight_EG.dtype)
    grad_x_TH = None
    if grad_x_SH is not None:
        parts = [grad_input @ wide(weight)]
        if len(x_TH):
            parts.append(grad_x_SH.view(len(x_TH), -1, x_TH.shape[1]).sum(1, dtype=parts[0].dtype))
        if grad_y_TH is not None:
            parts.append(grad_y_TH if mask_T is None else torch.where(mask_T[:, None], grad_y_TH, 0))
        grad_x_TH = sum(parts[1:], parts[0]).to(x_TH.dtype)
    return grad_x_TH, grad_hidden_weight, grad_hidden_bias, grad_weight, grad_bias, grad_logits_TE


# Plan: who is served when.


def plan(indices_TK: Tensor, num_experts: int, partials_BL: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """-> order_S, offsets_O: the fields of `routing.Plan`. `partials` of these tokens save a backend the counting."""
    indices_S = indices_TK.flatten()
    expert_S = torch.where((indices_S < 0) | (indices_S >= num_experts), num_experts, indices_S)
    order_S = expert_S.argsort(stable=True).int()
    counts_E = count_slots(indices_TK, num_experts)
    return order_S, F.pad(counts_E.cumsum(0), (1, 0)).int()


def _segments(offsets_O: Tensor) -> Iterator[tuple[int, slice]]:
    """(expert, its rows) for every expert that has any."""
    bounds = offsets_O.tolist()
    for expert, (start, stop) in enumerate(pairwise(bounds)):
        if stop > start:
            yield expert, slice(start, stop)


# Grouped GEMMs: each expert's weight times the rows that chose it.


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
    """x's rows by plan -> act_SF and, if it is to be kept, pre_SU, both in plan order."""
    num_slots, width = len(order_S), weight_EUH.shape[1]
    pre_SU = weight_EUH.new_zeros(num_slots, width)
    token_S = order_S // top_k
    for expert, rows in _segments(offsets_O):
        x_NH = x_TH[token_S[rows]].to(weight_EUH.dtype)
        pre_SU[rows] = F.linear(x_NH, weight_EUH[expert], None if bias_EU is None else bias_EU[expert])
    return activate(pre_SU, activation), pre_SU if keep_pre else None


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
    """weights * (act x down_weight + bias) -> rows_SH in slot order, of the given type; zeros for slots of nobody.

    A residual (top-1 only: a slot is then a token) is added to every row that somebody serves.
    """
    rows_SH = act_SF.new_zeros(len(order_S), weight_EHF.shape[1], dtype=dtype)
    weights_S = weights_TK.flatten()
    for expert, rows in _segments(offsets_O):
        slots = order_S[rows]
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
        y_TH = y_TH + (residual_TH if mask_T is None else torch.where(mask_T[:, None], residual_TH, 0))
    return y_TH.to(dtype)


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
    """-> grad_pre_SU and weighted_act_SF (act times weight, for `down_weight_grad`) in plan order; grad_weights_SP.

    The output of an expert is not needed for the gradient of its weight: <dy, act W + b> = <dy Wt, act> + <dy, b>.
    """
    grad_pre_SU, weighted_act_SF = torch.zeros_like(pre_SU), pre_SU.new_zeros(len(pre_SU), weight_EHF.shape[2])
    weights_S = weights_TK.flatten()
    grad_weights_SP = torch.zeros_like(weights_S)[:, None]
    for expert, rows in _segments(offsets_O):
        slots = order_S[rows]
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
    grad_y_TH: Tensor, weighted_act_SF: Tensor, order_S: Tensor, offsets_O: Tensor, weights_TK: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """-> grad_weight_EHF, grad_bias_EH, zeros for an expert with no row."""
    num_experts, hidden, width = len(offsets_O) - 1, grad_y_TH.shape[1], weighted_act_SF.shape[1]
    grad_weight_EHF = weighted_act_SF.new_zeros(num_experts, hidden, width)
    grad_bias_EH = weighted_act_SF.new_zeros(num_experts, hidden) if has_bias else None
    weights_S = weights_TK.flatten()
    for expert, rows in _segments(offsets_O):
        slots = order_S[rows]
        grad_NH = grad_y_TH[slots // weights_TK.shape[1]].to(weighted_act_SF.dtype)
        grad_weight_EHF[expert] = grad_NH.T @ weighted_act_SF[rows]
        if grad_bias_EH is not None:
            grad_bias_EH[expert] = weights_S[slots] @ wide(grad_NH)
    return grad_weight_EHF, grad_bias_EH


def up_backward(grad_pre_SU: Tensor, order_S: Tensor, offsets_O: Tensor, weight_EUH: Tensor) -> Tensor:
    """-> grad_x_SH in slot order, zeros for slots of nobody."""
    grad_x_SH = grad_pre_SU.new_zeros(len(order_S), weight_EUH.shape[2])
    for expert, rows in _segments(offsets_O):
        grad_x_SH[order_S[rows]] = grad_pre_SU[rows] @ weight_EUH[expert]
    return grad_x_SH


def up_weight_grad(
    x_TH: Tensor, grad_pre_SU: Tensor, order_S: Tensor, offsets_O: Tensor, top_k: int, has_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """-> grad_weight_EUH, grad_bias_EU, zeros for an expert with no row."""
    num_experts, width, hidden = len(offsets_O) - 1, grad_pre_SU.shape[1], x_TH.shape[1]
    grad_weight_EUH = grad_pre_SU.new_zeros(num_experts, width, hidden)
    grad_bias_EU = grad_pre_SU.new_zeros(num_experts, width) if has_bias else None
    token_S = order_S // top_k
    for expert, rows in _segments(offsets_O):
        grad_weight_EUH[expert] = grad_pre_SU[rows].T @ x_TH[token_S[rows]].to(grad_pre_SU.dtype)
        if grad_bias_EU is not None:
            grad_bias_EU[expert] = wide(grad_pre_SU[rows]).sum(0)
    return grad_weight_EUH, grad_bias_EU


# "all": no routing. Two plain GEMMs over the stacked experts, with the gate folded into the activations.


def all_up(
    x_TH: Tensor, weights_TE: Tensor, weight_EUH: Tensor, bias_EU: Tensor | None, activation: str, keep_pre: bool
) -> tuple[Tensor, Tensor | None]:
    """-> weighted_act_TEF and, if it is to be kept, pre_TEU."""
    num_experts, width, hidden = weight_EUH.shape
    bias = None if bias_EU is None else bias_EU.flatten()
    pre_TEU = F.linear(x_TH.to(weight_EUH.dtype), weight_EUH.reshape(-1, hidden), bias).view(-1, num_experts, width)
    weighted_act_TEF = (activate(pre_TEU, activation) * weights_TE[:, :, None]).to(pre_TEU.dtype)
    return weighted_act_TEF, pre_TEU if keep_pre else None


def all_down(
    weighted_act_TEF: Tensor,
    weights_TE: Tensor,
    weight_EHF: Tensor,
    bias_EH: Tensor | None,
    residual_TH: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """-> y_TH"""
    weight_HD = weight_EHF.transpose(0, 1).reshape(weight_EHF.shape[1], -1)
    y_TH = wide(weighted_act_TEF.flatten(1) @ weight_HD.T)
    if bias_EH is not None:
        y_TH = y_TH + weights_TE @ wide(bias_EH)
    return (y_TH if residual_TH is None else y_TH + residual_TH).to(dtype)


def all_down_backward(
    grad_y_TH: Tensor,
    pre_TEU: Tensor,
    weights_TE: Tensor,
    weight_EHF: Tensor,
    bias_EH: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> grad_pre_TEU, weighted_act_TEF, grad_weights_SP with a slot for every token and expert."""
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


def all_up_backward(grad_pre_TEU: Tensor, weight_EUH: Tensor) -> Tensor:
    """-> grad_x_TH"""
    return grad_pre_TEU.flatten(1) @ weight_EUH.reshape(-1, weight_EUH.shape[2])


def all_up_weight_grad(x_TH: Tensor, grad_pre_TEU: Tensor, has_bias: bool) -> tuple[Tensor, Tensor | None]:
    """-> grad_weight_EUH, grad_bias_EU"""
    num_experts, width = grad_pre_TEU.shape[1:]
    grad_weight_DH = grad_pre_TEU.flatten(1).T @ x_TH.to(grad_pre_TEU.dtype)
    grad_bias_EU = wide(grad_pre_TEU).sum(0).to(grad_pre_TEU.dtype) if has_bias else None
    return grad_weight_DH.view(num_experts, width, -1), grad_bias_EU


# Attention over sequences laid end to end. More suffixes: A heads, D head size, P sequences, L longest sequence.


def attention(
    q_TAD: Tensor,
    k_TAD: Tensor,
    v_TAD: Tensor,
    cu_seqlens: Tensor,
    max_len: int,
    dropout: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ / sqrt(D)) v within each sequence -> out_TAD, lse_TA (log-sum-exp of the scores).

    Dropout drops probability (token t, head a, position j) if `dropout_hash(seed, t * A + a, j)` is below the rate:
    a function of its place, so that the backward, another backend or another chunk finds the same mask.
    """
    out_TAD, lse_TA = torch.zeros_like(q_TAD), wide(q_TAD.new_zeros(q_TAD.shape[:2]))
    for block in _attention_blocks(q_TAD, cu_seqlens, max_len):
        q_PALD, k_PALD, v_PALD = (block.pad(tensor) for tensor in (q_TAD, k_TAD, v_TAD))
        scores_PALL = block.scores(q_PALD, k_PALD)
        lse_PAL = scores_PALL.logsumexp(-1)
        probs_PALL = (scores_PALL - lse_PAL[..., None]).exp() * block.dropout(seed, dropout)
        block.unpad(probs_PALL @ v_PALD, out_TAD)
        block.unpad(lse_PAL, lse_TA)
    return out_TAD, lse_TA


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
    """-> grad_q_TAD, grad_k_TAD, grad_v_TAD. The probabilities are computed again from q, k and lse."""
    grad_q_TAD, grad_k_TAD, grad_v_TAD = (torch.zeros_like(tensor) for tensor in (q_TAD, k_TAD, v_TAD))
    delta_TA = (wide(out_TAD) * grad_TAD).sum(-1)
    for block in _attention_blocks(q_TAD, cu_seqlens, max_len):
        q_PALD, k_PALD, v_PALD, grad_PALD = (block.pad(tensor) for tensor in (q_TAD, k_TAD, v_TAD, grad_TAD))
        lse_PAL, delta_PAL = (block.pad(tensor[:, :, None])[..., 0] for tensor in (lse_TA, delta_TA))
        probs_PALL = (block.scores(q_PALD, k_PALD) - lse_PAL[..., None]).exp()
        dropped_PALL = block.dropout(seed, dropout)
        grad_probs_PALL = grad_PALD @ v_PALD.mT * dropped_PALL
        grad_scores_PALL = probs_PALL * (grad_probs_PALL - delta_PAL[..., None]) * block.scale
        block.unpad(grad_scores_PALL @ k_PALD, grad_q_TAD)
        block.unpad(grad_scores_PALL.mT @ q_PALD, grad_k_TAD)
        block.unpad((probs_PALL * dropped_PALL).mT @ grad_PALD, grad_v_TAD)
    return grad_q_TAD, grad_k_TAD, grad_v_TAD


def dropout_hash(seed: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """A 32-bit hash in int64, of the seed, a row and a column: two rounds of a multiply-xorshift mixer."""

    def mix(h: Tensor) -> Tensor:
        h = (h ^ (h >> 16)) * 0x7FEB352D & 0xFFFFFFFF
        h = (h ^ (h >> 15)) * 0x846CA68B & 0xFFFFFFFF
        return h ^ (h >> 16)

    return mix(mix((row ^ seed) & 0xFFFFFFFF) + column * 0x9E3779B9 & 0xFFFFFFFF)


class _AttentionBlock:
    """A few sequences, padded to the longest: rows of `index_PL` are tokens, true in `live_PL` where they exist."""

    def __init__(self, like_TAD: Tensor, cu_seqlens: Tensor, first: int, last: int, max_len: int):
        start_P, stop_P = cu_seqlens[first:last].long(), cu_seqlens[first + 1 : last + 1].long()
        self.column_L = torch.arange(max_len, device=like_TAD.device)
        row_PL = start_P[:, None] + self.column_L
        self.live_PL = row_PL < stop_P[:, None]
        self.index_PL = row_PL.clamp(max=max(len(like_TAD) - 1, 0))
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

    def dropout(self, seed: Tensor, rate: float) -> Tensor | float:
        """What each probability is multiplied by: 0 or 1 / (1 - rate)"""
        if rate == 0.0:
            return 1.0
        row_PAL = (self.index_PL * self.heads)[:, None] + torch.arange(self.heads, device=seed.device)[:, None]
        hash_PALL = dropout_hash(seed, row_PAL[..., None], self.column_L)
        return (hash_PALL >= int(rate * 2**32)) / (1 - rate)


def _attention_blocks(like_TAD: Tensor, cu_seqlens: Tensor, max_len: int) -> Iterator[_AttentionBlock]:
    """As many sequences at a time as keep the scores under 64 million."""
    num_sequences = len(cu_seqlens) - 1 if len(like_TAD) else 0
    step = max(1, 2**26 // max(1, like_TAD.shape[1] * max_len * max_len))
    for first in range(0, num_sequences, step):
        yield _AttentionBlock(like_TAD, cu_seqlens, first, min(first + step, num_sequences), max_len)
