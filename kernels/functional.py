"""Forward and backward of every path, written down once, over the primitives of a backend.

Three paths, each one op forward and one op backward (see `ops.py`) inside one `autograd.Function`:

    route     logits -> weights, indices
    experts   x, indices, weights -> y
    moe       x -> y: the gate, then the experts

A fourth, of experts that a hypernetwork makes, is in `generated.py`.

Saved for the backward: x, the pre-activation, the gate's logits, weights and int32 indices, the plan. Activations are
computed again, and no expert output is kept. Shape suffixes: see `routing.py`; records: see `records.py`.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import autocast, dispatch, ops, validation
from kernels.contract import Backend
from kernels.records import (
    ExpertWeights,
    GateGrads,
    GateWeights,
    Rule,
    Tokens,
    flatten,
    pack,
    zero_masked,
)
from kernels.reference import wide_dtype
from kernels.routing import ALL, Plan, Routing

# The bodies of the ops.


def _empty_routing(logits_TE: Tensor, rule: Rule) -> Routing:
    num_tokens, num_experts = logits_TE.shape
    weights_TK = logits_TE.new_empty(num_tokens, num_experts if rule.top_k == ALL else rule.top_k)
    return Routing(weights_TK, logits_TE.new_empty(num_tokens, rule.top_k, dtype=torch.int32), logits_TE)


class Chosen(NamedTuple):
    weights_TK: Tensor
    indices_TK: Tensor
    sums_L: Tensor


def _route_fake(logits_TE, selection_bias_E, mask_T, rule):
    weights_TK, indices_TK, _ = _empty_routing(logits_TE, rule)
    return Chosen(weights_TK, indices_TK, logits_TE.new_empty(2 * logits_TE.shape[1] + 2))


@ops.define(fake=_route_fake, compute="logits_TE")
def route_forward(
    backend: Backend, logits_TE: Tensor, selection_bias_E: Tensor | None, mask_T: Tensor | None, rule: Rule
) -> Chosen:
    routing, partials_BL = backend.choose(logits_TE, selection_bias_E, mask_T, rule)
    return Chosen(routing.weights_TK, routing.indices_TK, partials_BL.sum(0))


@ops.define(
    fake=lambda grad_weights_TK, grad_sums_L, routing, *rest: ops.empty_like(routing.logits_TE),
    compute="routing_logits_TE",
)
def route_backward(
    backend: Backend,
    grad_weights_TK: Tensor,
    grad_sums_L: Tensor | None,
    routing: Routing,
    mask_T: Tensor | None,
    rule: Rule,
) -> Tensor:
    return backend.choose_backward(grad_weights_TK.reshape(-1, 1), grad_sums_L, routing, mask_T, rule)


def _empty_pre(num_tokens: int, top_k: int, experts: ExpertWeights) -> Tensor:
    num_experts, width, _ = experts.up_weight_EUH.shape
    shape = (num_tokens, num_experts, width) if top_k == ALL else (num_tokens * top_k, width)
    return experts.up_weight_EUH.new_empty(shape)


def _empty_plan(indices_TK: Tensor, num_experts: int) -> Plan:
    return Plan(indices_TK.new_empty(indices_TK.numel()), indices_TK.new_empty(num_experts + 1))


def _empty_like(experts: ExpertWeights) -> ExpertWeights:
    return ExpertWeights._make(t if t is None else ops.empty_like(t) for t in experts)


_NO_GRADS = ExpertWeights._make([None] * 4)


class ExpertsOutput(NamedTuple):
    y_TH: Tensor
    pre_SU: Tensor | None
    plan: Plan


def _experts_fake(x_TH, indices_TK, weights_TK, experts, activation, keep):
    num_tokens, top_k = indices_TK.shape
    pre_SU = _empty_pre(num_tokens, top_k, experts) if keep else None
    return ExpertsOutput(ops.empty_like(x_TH), pre_SU, _empty_plan(indices_TK, len(experts.up_weight_EUH)))


@ops.define(fake=_experts_fake, compute="experts_up_weight_EUH", rows="x_TH")
def experts_forward(
    backend: Backend,
    x_TH: Tensor,
    indices_TK: Tensor,
    weights_TK: Tensor,
    experts: ExpertWeights,
    activation: str,
    keep: bool,
) -> ExpertsOutput:
    plan = backend.plan(indices_TK, len(experts.up_weight_EUH))
    y_TH, pre_SU = _run_planned(backend, Tokens(x_TH), plan, weights_TK, experts, activation, False, keep)
    return ExpertsOutput(y_TH, pre_SU, plan)


def _run_planned(
    backend: Backend,
    tokens: Tokens,
    plan: Plan,
    weights_TK: Tensor,
    experts: ExpertWeights,
    activation: str,
    residual: bool,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """-> y_TH and, if kept, pre_SU. With one expert a token its row is its result, else rows are combined."""
    top_k, x_TH = weights_TK.shape[1], tokens.x_TH
    residual_TH = x_TH if residual else None
    if top_k == 1:
        return backend.up_and_down(x_TH, plan, weights_TK, experts, residual_TH, activation, keep, x_TH.dtype)
    dtype = experts.up_weight_EUH.dtype
    rows_SH, pre_SU = backend.up_and_down(x_TH, plan, weights_TK, experts, None, activation, keep, dtype)
    return backend.combine(rows_SH, top_k, residual_TH, tokens.mask_T, x_TH.dtype), pre_SU


class ExpertsGrads(NamedTuple):
    x_TH: Tensor | None
    weights_TK: Tensor
    experts: ExpertWeights | None


@ops.define(
    fake=lambda grad_y_TH, x_TH, weights_TK, experts, pre_SU, plan, activation, need_x, need_experts: ExpertsGrads(
        ops.empty_like(x_TH) if need_x else None,
        ops.empty_like(weights_TK),
        _empty_like(experts) if need_experts else _NO_GRADS,
    ),
    compute="experts_up_weight_EUH",
    rows="x_TH",
)
def experts_backward(
    backend: Backend,
    grad_y_TH: Tensor,
    x_TH: Tensor,
    weights_TK: Tensor,
    experts: ExpertWeights,
    pre_SU: Tensor,
    plan: Plan,
    activation: str,
    need_x: bool,
    need_experts: bool,
) -> ExpertsGrads:
    given = Given(grad_y_TH, x_TH, weights_TK, pre_SU)
    grad_x_SH, grad_weights_SP, grads = planned_backward(
        backend, given, plan, experts, activation, need_x, need_experts
    )
    grad_x_TH = None
    if grad_x_SH is not None:
        grad_x_TH = backend.combine(grad_x_SH, weights_TK.shape[1], None, None, x_TH.dtype)
    return ExpertsGrads(grad_x_TH, grad_weights_SP.sum(-1).view_as(weights_TK), grads)


class Given(NamedTuple):
    """What the backward of the experts starts from."""

    grad_y_TH: Tensor
    x_TH: Tensor
    weights_TK: Tensor
    pre: Tensor


def planned_backward(
    backend: Backend,
    given: Given,
    plan: Plan,
    experts: ExpertWeights,
    activation: str,
    need_x: bool,
    need_experts: bool,
) -> tuple[Tensor | None, Tensor, ExpertWeights]:
    """-> grad_x_SH, grad_weights_SP and the gradients of the experts."""
    grad_y_TH, x_TH, weights_TK, pre_SU = given
    grad_pre_SU, weighted_act_SF, grad_weights_SP = backend.down_backward(
        grad_y_TH, pre_SU, plan, weights_TK, experts, activation
    )
    grads = _NO_GRADS
    if need_experts:
        has_up_bias, has_down_bias = experts.up_bias_EU is not None, experts.down_bias_EH is not None
        down = backend.down_weight_grad(grad_y_TH, weighted_act_SF, plan, weights_TK, has_down_bias)
        up = backend.up_weight_grad(x_TH, grad_pre_SU, plan, weights_TK.shape[1], has_up_bias)
        grads = ExpertWeights(*up, *down)
    grad_x_SH = backend.up_backward(grad_pre_SU, plan, experts) if need_x else None
    return grad_x_SH, grad_weights_SP, grads


def _full_backward(
    backend: Backend, given: Given, experts: ExpertWeights, activation: str, need_x: bool, need_experts: bool
) -> tuple[Tensor | None, Tensor, ExpertWeights]:
    """As `planned_backward`, of every expert on every token; the gradient of x has one row a token."""
    grad_y_TH, x_TH, weights_TE, pre_TEU = given
    grad_pre_TEU, weighted_act_TEF, grad_weights_SP = backend.all_down_backward(
        grad_y_TH, pre_TEU, weights_TE, experts, activation
    )
    grads = _NO_GRADS
    if need_experts:
        has_up_bias, has_down_bias = experts.up_bias_EU is not None, experts.down_bias_EH is not None
        down = backend.all_down_weight_grad(grad_y_TH, weighted_act_TEF, weights_TE, has_down_bias)
        grads = ExpertWeights(*backend.all_up_weight_grad(x_TH, grad_pre_TEU, has_up_bias), *down)
    grad_x_TH = backend.all_up_backward(grad_pre_TEU, experts) if need_x else None
    return grad_x_TH, grad_weights_SP, grads


class MoEOutput(NamedTuple):
    y_TH: Tensor
    pre: Tensor | None
    """pre_SU, or pre_TEU where every expert runs on every token."""
    routing: Routing
    plan: Plan
    """Of no slots where every expert runs on every token."""
    sums_L: Tensor | None


def _moe_fake(tokens, gate, experts, rule, activation, residual, keep, want_sums):
    (num_tokens, _), num_experts = tokens.x_TH.shape, len(gate.weight_EG)
    logits_TE = gate.weight_EG.new_empty(num_tokens, num_experts, dtype=wide_dtype(gate.weight_EG.dtype))
    routing = _empty_routing(logits_TE, rule)
    return MoEOutput(
        ops.empty_like(tokens.x_TH),
        _empty_pre(num_tokens, rule.top_k, experts) if keep else None,
        routing,
        _empty_plan(routing.indices_TK, -1 if rule.top_k == ALL else num_experts),
        logits_TE.new_empty(2 * num_experts + 2) if want_sums else None,
    )


@ops.define(fake=_moe_fake, compute="experts_up_weight_EUH", rows="tokens_x_TH")
def moe_forward(
    backend: Backend,
    tokens: Tokens,
    gate: GateWeights,
    experts: ExpertWeights,
    rule: Rule,
    activation: str,
    residual: bool,
    keep: bool,
    want_sums: bool,
) -> MoEOutput:
    routing, partials_BL = backend.gate(tokens, gate, rule)
    weights_TK = routing.weights_TK
    if rule.top_k == ALL:
        plan = _empty_plan(routing.indices_TK, -1)
        live_TH = tokens.without_masked()
        weighted_act_TEF, pre = backend.all_up(live_TH, weights_TK, experts, activation, keep)
        y_TH = backend.all_down(weighted_act_TEF, weights_TK, experts, live_TH if residual else None, tokens.x_TH.dtype)
    else:
        plan = backend.plan(routing.indices_TK, len(experts.up_weight_EUH), partials_BL)
        y_TH, pre = _run_planned(backend, tokens, plan, weights_TK, experts, activation, residual, keep)
    return MoEOutput(y_TH, pre, routing, plan, partials_BL.sum(0) if want_sums else None)


class MoEGrads(NamedTuple):
    x_TH: Tensor | None
    gate: GateWeights
    logits_TE: Tensor
    experts: ExpertWeights | None


def _moe_backward_fake(grad_y_TH, grad_sums_L, tokens, gate, experts, pre, routing, *rest):
    *_, need_x, need_experts = rest
    hidden_GH, weight_EG = gate.hidden_weight_GH, gate.weight_EG
    hidden = [None, None] if hidden_GH is None else [ops.empty_like(hidden_GH), hidden_GH.new_empty(len(hidden_GH))]
    return MoEGrads(
        ops.empty_like(tokens.x_TH) if need_x else None,
        GateWeights._make([*hidden, ops.empty_like(weight_EG), weight_EG.new_empty(len(weight_EG)), None]),
        ops.empty_like(routing.logits_TE),
        _empty_like(experts) if need_experts else _NO_GRADS,
    )


@ops.define(fake=_moe_backward_fake, compute="experts_up_weight_EUH", rows="tokens_x_TH")
def moe_backward(
    backend: Backend,
    grad_y_TH: Tensor,
    grad_sums_L: Tensor | None,
    tokens: Tokens,
    gate: GateWeights,
    experts: ExpertWeights,
    pre: Tensor,
    routing: Routing,
    plan: Plan,
    rule: Rule,
    activation: str,
    residual: bool,
    need_x: bool,
    need_experts: bool,
) -> MoEGrads:
    if rule.top_k == ALL:
        live_grad_TH = zero_masked(grad_y_TH, tokens.mask_T)
        given = Given(live_grad_TH, tokens.without_masked(), routing.weights_TK, pre)
        grad_x, grad_weights_SP, grads = _full_backward(backend, given, experts, activation, need_x, need_experts)
    else:
        given = Given(grad_y_TH, tokens.x_TH, routing.weights_TK, pre)
        grad_x, grad_weights_SP, grads = planned_backward(
            backend, given, plan, experts, activation, need_x, need_experts
        )
    gate_grads = GateGrads(grad_weights_SP, grad_sums_L, grad_x, grad_y_TH if residual else None)
    grad_x_TH, grad_gate, grad_logits_TE = backend.gate_backward(gate_grads, tokens, routing, gate, rule)
    return MoEGrads(grad_x_TH, grad_gate, grad_logits_TE, grads)


# The autograd Functions. They are applied to the fields of their records, because autograd looks at tensors alone.


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits_TE, selection_bias_E, mask_T, *rule):
        ctx.rule = Rule(*rule)
        weights_TK, indices_TK, sums_L = route_forward(logits_TE, selection_bias_E, mask_T, ctx.rule)
        ctx.save_for_backward(weights_TK, indices_TK, logits_TE, mask_T)
        ctx.mark_non_differentiable(indices_TK)
        return weights_TK, indices_TK, sums_L

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_weights_TK, _, grad_sums_L):
        routing, mask_T = pack(ctx.saved_tensors, Routing, Tensor)
        grad_logits_TE = route_backward(grad_weights_TK, grad_sums_L, routing, mask_T, ctx.rule)
        return grad_logits_TE, None, None, None, None, None


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TH, indices_TK, weights_TK, activation, *experts):
        y_TH, pre_SU, plan = experts_forward(x_TH, indices_TK, weights_TK, ExpertWeights(*experts), activation, True)
        ctx.save_for_backward(x_TH, weights_TK, *experts, pre_SU, *plan)
        ctx.activation = activation
        return y_TH

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y_TH):
        saved = pack(ctx.saved_tensors, Tensor, Tensor, ExpertWeights, Tensor, Plan)
        need_x, _, _, _, *need_experts = ctx.needs_input_grad
        grads = experts_backward(grad_y_TH, *saved, ctx.activation, need_x, any(need_experts))
        return grads.x_TH, None, grads.weights_TK, None, *grads.experts


_MOE_KINDS = (Tokens, GateWeights, ExpertWeights, Rule, str, bool)


class _MoE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *flat):
        tokens, gate, experts, rule, activation, residual = pack(flat, *_MOE_KINDS)
        y_TH, pre, routing, plan, sums_L = moe_forward(tokens, gate, experts, rule, activation, residual, True, True)
        saved_gate = gate._replace(bias_E=None, selection_bias_E=None)  # not read, and the latter changes in place
        ctx.save_for_backward(*tokens._replace(noise_TE=None), *saved_gate, *experts, pre, *routing, *plan)
        ctx.settings = rule, activation, residual
        ctx.mark_non_differentiable(*routing)
        ctx.set_materialize_grads(False)  # else autograd fills four tensors with zeros that are never read
        return y_TH, sums_L, *routing

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y_TH, grad_sums_L, *_):
        # Unpacked once: gradient checkpointing allows no more.
        tokens, *rest = pack(ctx.saved_tensors, Tokens, GateWeights, ExpertWeights, Tensor, Routing, Plan)
        needs, needs_gate, needs_experts = pack(ctx.needs_input_grad, *_MOE_KINDS)[:3]
        grad_y_TH = torch.zeros_like(tokens.x_TH) if grad_y_TH is None else grad_y_TH
        grads = moe_backward(grad_y_TH, grad_sums_L, tokens, *rest, *ctx.settings, needs.x_TH, any(needs_experts))
        grad_gate = [grad if needed else None for grad, needed in zip(grads.gate, needs_gate)]
        grad_noise_TE = grads.logits_TE if needs.noise_TE else None
        return grads.x_TH, None, grad_noise_TE, *grad_gate, *grads.experts, None, None, None, None, None


# What the layers and the public functions call.


def run_moe(
    tokens: Tokens,
    gate: GateWeights,
    experts: ExpertWeights,
    rule: Rule,
    activation: str,
    residual: bool = False,
    want_sums: bool = False,
) -> tuple[Tensor, Tensor | None, Routing]:
    """-> y_TH, the sums for the losses if they are asked for, and what the router decided."""
    routing: Routing
    dtype = compute_dtype(experts.up_weight_EUH)
    if records_gradient(*tokens, *gate, *experts):
        arguments = (tokens, gate, experts.to(dtype), rule, activation, residual)
        y_TH, sums_L, *decided = _MoE.apply(*flatten(arguments))
        return y_TH, sums_L, Routing._make(decided)
    if rule.top_k != ALL and not ops.is_watched(tokens.x_TH):
        backend = dispatch.pick(tokens.x_TH.device, dtype, len(tokens.x_TH))
        if backend.layer is not None:
            y_TH, routing, partials_BL = backend.layer(tokens, gate, experts, rule, activation, residual, dtype)
            return y_TH, partials_BL.sum(0) if want_sums else None, routing
    output = moe_forward(tokens, gate, experts.to(dtype), rule, activation, residual, False, want_sums)
    return output.y_TH, output.sums_L, output.routing


def records_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd is to record what is computed from them; an error where something else would."""
    recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    ops.check_differentiable(*tensors, records_gradient=recorded)
    return recorded


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The experts' type, or autocast's. x is converted where it is multiplied, and the gate stays fp32."""
    device = weight.device.type
    if not autocast.is_on(device) or weight.dtype == torch.float64:
        return weight.dtype
    return torch.get_autocast_dtype(device)


def moe(
    x: Tensor,
    router_weight: Tensor,
    up_weight: Tensor,
    up_bias: Tensor | None,
    down_weight: Tensor,
    down_bias: Tensor | None,
    *,
    top_k: int | str,
    activation: str = "gelu",
    router: str = "softmax",
    renormalize: bool = True,
    mask: Tensor | None = None,
) -> Tensor:
    """A mixture-of-experts layer as a function: x [..., H] -> y like x.

    router_weight is [E, H], up_weight [E, F, H] ([E, 2F, H] for a gated activation, gate half first), up_bias [E, F],
    down_weight [E, H, F], down_bias [E, H]; a bias may be None. `mask` has x's leading shape; where it is false a
    token is not routed and y is 0. See `MoE` for the other arguments.
    """
    validation.check_choices(activation=activation, router=router)
    experts = ExpertWeights(up_weight, up_bias, down_weight, down_bias)
    validation.check_experts(experts, activation)
    num_experts, hidden = up_weight.shape[0], up_weight.shape[2]
    validation.check_shape("router_weight", router_weight, (num_experts, hidden))
    validation.check_floating("router_weight", router_weight)
    x_TH = validation.check_input(x, hidden, up_weight)
    validation.check_double("router_weight", router_weight, "the experts are", up_weight)
    validation.check_device("router_weight", router_weight, "x is", x.device)
    tokens = Tokens(x_TH, validation.check_mask(mask, x))
    rule = Rule(validation.check_top_k(top_k, num_experts), router, renormalize)
    y_TH, _, _ = run_moe(tokens, GateWeights(None, None, router_weight), experts, rule, activation)
    return y_TH.view(x.shape)


def route(
    logits: Tensor,
    top_k: int | str,
    *,
    router: str = "softmax",
    renormalize: bool = True,
    mask: Tensor | None = None,
) -> Routing:
    """Chooses `top_k` experts for each row of logits [T, E] -> Routing (differentiable in its weights).

    A row with a logit that is not finite gets NaN weights: to forbid an expert, use a large negative number.
    With top_k="all" the weights are [T, E] and the indices 0..E-1.
    """
    validation.check_choices(router=router)
    validation.check_floating("logits", logits)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must be [tokens, experts], at least one expert, got shape {tuple(logits.shape)}")
    rule = Rule(validation.check_top_k(top_k, logits.shape[1]), router, renormalize)
    mask_T = validation.check_mask(mask, logits)
    logits_TE = logits.to(wide_dtype(logits.dtype)).contiguous()
    if records_gradient(logits_TE):
        weights_TK, indices_TK, _ = _Route.apply(logits_TE, None, mask_T, *rule)
    else:
        weights_TK, indices_TK, _ = route_forward(logits_TE, None, mask_T, rule)
    routing = Routing(weights_TK, indices_TK, logits_TE)
    return with_every_expert(routing, mask_T) if rule.top_k == ALL else routing


def with_every_expert(routing: Routing, mask_T: Tensor | None) -> Routing:
    """For a reader: the indices that "all" implies, 0..E-1 for every token that is not masked."""
    like = routing.logits_TE
    indices_TE = torch.arange(like.shape[1], dtype=torch.int32, device=like.device).expand(like.shape)
    if mask_T is not None:
        indices_TE = torch.where(mask_T[:, None], indices_TE, -1)
    return routing._replace(indices_TK=indices_TE)


def expert_mlp(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    up_weight: Tensor,
    up_bias: Tensor | None,
    down_weight: Tensor,
    down_bias: Tensor | None,
    *,
    activation: str = "gelu",
) -> Tensor:
    """The experts alone: y[t] = sum over k of weights[t, k] * expert indices[t, k] (x[t]); x [..., H] -> y like x.

    indices and weights have x's leading shape and K columns. An index outside 0..E-1 (use -1) is an unused slot.
    Parameters as in `moe`.
    """
    validation.check_choices(activation=activation)
    experts = ExpertWeights(up_weight, up_bias, down_weight, down_bias)
    validation.check_experts(experts, activation)
    x_TH = validation.check_input(x, up_weight.shape[2], up_weight)
    indices_TK, weights_TK = validation.check_slots(indices, weights, x)
    weights_TK = weights_TK.to(wide_dtype(up_weight.dtype))
    experts = experts.to(compute_dtype(up_weight))
    if records_gradient(x_TH, weights_TK, *experts):
        y_TH = _Experts.apply(x_TH, indices_TK, weights_TK, activation, *experts)
    else:
        y_TH = experts_forward(x_TH, indices_TK, weights_TK, experts, activation, False).y_TH
    return y_TH.view(x.shape)
