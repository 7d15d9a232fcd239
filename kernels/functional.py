"""Forward and backward of every path, written down once, over the primitives of a backend.

Three paths, each one op forward and one op backward (see `ops.py`) inside one `autograd.Function`:

    route     logits -> weights, indices
    experts   x, indices, weights -> y
    moe       x -> y: the gate, then the experts

Saved for the backward: x, the pre-activation, the gate's logits, weights and int32 indices, the plan. Activations are
computed again, and no expert output is kept. Shape suffixes: see `routing.py`.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import dispatch, ops, validation
from kernels.reference import GATED, wide_dtype
from kernels.routing import ALL, Routing

# Bodies of the ops. A returned tensor that nobody asked for is empty: an op cannot return None.


def _nothing(like: Tensor) -> Tensor:
    return like.new_empty(0)


def _given(tensor: Tensor | None, like: Tensor) -> Tensor:
    return _nothing(like) if tensor is None else tensor


def _route_forward_fake(logits, selection_bias, mask, top_k, router, renormalize):
    num_tokens, num_experts = logits.shape
    weights = logits.new_empty(num_tokens, num_experts if top_k == ALL else top_k)
    indices = logits.new_empty(num_tokens, top_k, dtype=torch.int32)
    return weights, indices, logits.new_empty(2 * num_experts + 2)


@ops.define(
    "route_forward(Tensor logits, Tensor? selection_bias, Tensor? mask, int top_k, str router, bool renormalize)"
    " -> (Tensor weights, Tensor indices, Tensor sums)",
    fake=_route_forward_fake,
    compute="logits",
)
def route_forward(
    backend: ModuleType,
    logits_TE: Tensor,
    selection_bias_E: Tensor | None,
    mask_T: Tensor | None,
    top_k: int,
    router: str,
    renormalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    weights_TK, indices_TK, partials_BL = backend.choose(
        logits_TE, selection_bias_E, mask_T, top_k, router, renormalize
    )
    return weights_TK, indices_TK, partials_BL.sum(0)


@ops.define(
    "route_backward(Tensor grad_weights, Tensor? grad_sums, Tensor logits, Tensor weights, Tensor indices,"
    " Tensor? mask, str router, bool renormalize) -> Tensor grad_logits",
    fake=lambda grad_weights, grad_sums, logits, *rest: torch.empty_like(logits),
    compute="logits",
)
def route_backward(
    backend: ModuleType,
    grad_weights_TK: Tensor,
    grad_sums_L: Tensor | None,
    logits_TE: Tensor,
    weights_TK: Tensor,
    indices_TK: Tensor,
    mask_T: Tensor | None,
    router: str,
    renormalize: bool,
) -> Tensor:
    return backend.choose_backward(
        grad_weights_TK.reshape(-1, 1), grad_sums_L, logits_TE, weights_TK, indices_TK, mask_T, router, renormalize
    )


def _pre_shape(num_tokens, top_k, up_weight):
    num_experts, width, _ = up_weight.shape
    return (num_tokens, num_experts, width) if top_k == ALL else (num_tokens * top_k, width)


def _experts_forward_fake(x, indices, weights, up_weight, up_bias, down_weight, down_bias, activation, keep):
    num_tokens, top_k = indices.shape
    pre = up_weight.new_empty(_pre_shape(num_tokens, top_k, up_weight) if keep else 0)
    order = indices.new_empty(num_tokens * top_k)
    return torch.empty_like(x), pre, order, indices.new_empty(up_weight.shape[0] + 1)


@ops.define(
    "experts_forward(Tensor x, Tensor indices, Tensor weights, Tensor up_weight, Tensor? up_bias, Tensor down_weight,"
    " Tensor? down_bias, str activation, bool keep) -> (Tensor y, Tensor pre, Tensor order, Tensor offsets)",
    fake=_experts_forward_fake,
    compute="up_weight",
)
def experts_forward(
    backend: ModuleType,
    x_TH: Tensor,
    indices_TK: Tensor,
    weights_TK: Tensor,
    up_weight_EUH: Tensor,
    up_bias_EU: Tensor | None,
    down_weight_EHF: Tensor,
    down_bias_EH: Tensor | None,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    order_S, offsets_O = backend.plan(indices_TK, len(up_weight_EUH))
    y_TH, pre_SU = _serve(
        backend, x_TH, weights_TK, order_S, offsets_O, up_weight_EUH, up_bias_EU, down_weight_EHF, down_bias_EH,
        None, None, activation, keep,
    )  # fmt: skip
    return y_TH, _given(pre_SU, up_weight_EUH), order_S, offsets_O


def _serve(
    backend: ModuleType,
    x_TH: Tensor,
    weights_TK: Tensor,
    order_S: Tensor,
    offsets_O: Tensor,
    up_weight_EUH: Tensor,
    up_bias_EU: Tensor | None,
    down_weight_EHF: Tensor,
    down_bias_EH: Tensor | None,
    residual_TH: Tensor | None,
    mask_T: Tensor | None,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """The planned experts on x -> y_TH and, if kept, pre_SU. With one expert a token its row is its result."""
    top_k = weights_TK.shape[1]
    residual, dtype = (residual_TH, x_TH.dtype) if top_k == 1 else (None, up_weight_EUH.dtype)
    if hasattr(backend, "up_and_down"):  # where activations need not leave a cache
        rows_SH, pre_SU = backend.up_and_down(
            x_TH, order_S, offsets_O, weights_TK, up_weight_EUH, up_bias_EU, down_weight_EHF, down_bias_EH, residual,
            activation, keep, dtype,
        )  # fmt: skip
    else:
        act_SF, pre_SU = backend.up(x_TH, order_S, offsets_O, up_weight_EUH, up_bias_EU, top_k, activation, keep)
        rows_SH = backend.down(act_SF, order_S, offsets_O, weights_TK, down_weight_EHF, down_bias_EH, residual, dtype)
    if top_k == 1:
        return rows_SH, pre_SU
    return backend.combine(rows_SH, top_k, residual_TH, mask_T, x_TH.dtype), pre_SU


def _experts_backward_fake(
    grad_y, x, indices, weights, up_weight, up_bias, down_weight, down_bias, pre, order, offsets, activation,
    need_x, need_experts,
):  # fmt: skip
    grads = [torch.empty_like(t) if t is not None and need_experts else _nothing(x)
             for t in (up_weight, up_bias, down_weight, down_bias)]  # fmt: skip
    return torch.empty_like(x) if need_x else _nothing(x), torch.empty_like(weights), *grads


@ops.define(
    "experts_backward(Tensor grad_y, Tensor x, Tensor indices, Tensor weights, Tensor up_weight, Tensor? up_bias,"
    " Tensor down_weight, Tensor? down_bias, Tensor pre, Tensor order, Tensor offsets, str activation, bool need_x,"
    " bool need_experts) -> (Tensor grad_x, Tensor grad_weights, Tensor grad_up_weight, Tensor grad_up_bias,"
    " Tensor grad_down_weight, Tensor grad_down_bias)",
    fake=_experts_backward_fake,
    compute="up_weight",
)
def experts_backward(
    backend: ModuleType,
    grad_y_TH: Tensor,
    x_TH: Tensor,
    indices_TK: Tensor,
    weights_TK: Tensor,
    up_weight_EUH: Tensor,
    up_bias_EU: Tensor | None,
    down_weight_EHF: Tensor,
    down_bias_EH: Tensor | None,
    pre_SU: Tensor,
    order_S: Tensor,
    offsets_O: Tensor,
    activation: str,
    need_x: bool,
    need_experts: bool,
) -> tuple[Tensor, ...]:
    grad_x_SH, grad_weights_SP, grads = _serve_backward(
        backend, grad_y_TH, x_TH, weights_TK, up_weight_EUH, up_bias_EU, down_weight_EHF, down_bias_EH,
        pre_SU, order_S, offsets_O, activation, need_x, need_experts,
    )  # fmt: skip
    grad_x_TH = None
    if grad_x_SH is not None:
        grad_x_TH = backend.combine(grad_x_SH, weights_TK.shape[1], None, None, x_TH.dtype)
    return _given(grad_x_TH, x_TH), grad_weights_SP.sum(-1).view_as(weights_TK), *grads


def _serve_backward(
    backend: ModuleType,
    grad_y_TH: Tensor,
    x_TH: Tensor,
    weights_TK: Tensor,
    up_weight_EUH: Tensor,
    up_bias_EU: Tensor | None,
    down_weight_EHF: Tensor,
    down_bias_EH: Tensor | None,
    pre_SU: Tensor,
    order_S: Tensor,
    offsets_O: Tensor,
    activation: str,
    need_x: bool,
    need_experts: bool,
) -> tuple[Tensor | None, Tensor, list[Tensor]]:
    """-> grad_x_SH, grad_weights_SP and the gradients of the expert parameters, in their order."""
    grad_pre_SU, weighted_act_SF, grad_weights_SP = backend.down_backward(
        grad_y_TH, pre_SU, order_S, offsets_O, weights_TK, down_weight_EHF, down_bias_EH, activation
    )
    grads: list[Tensor | None] = [None] * 4
    if need_experts:
        grads[2:] = backend.down_weight_grad(
            grad_y_TH, weighted_act_SF, order_S, offsets_O, weights_TK, down_bias_EH is not None
        )
        grads[:2] = backend.up_weight_grad(
            x_TH, grad_pre_SU, order_S, offsets_O, weights_TK.shape[1], up_bias_EU is not None
        )
    grad_x_SH = backend.up_backward(grad_pre_SU, order_S, offsets_O, up_weight_EUH) if need_x else None
    return grad_x_SH, grad_weights_SP, [_given(grad, x_TH) for grad in grads]


def _moe_forward_fake(
    x, hidden_weight, hidden_bias, weight, bias, noise, selection_bias, mask, up_weight, up_bias, down_weight,
    down_bias, top_k, activation, router, renormalize, residual, keep, want_sums,
):  # fmt: skip
    num_tokens, num_experts = x.shape[0], weight.shape[0]
    logits = weight.new_empty(num_tokens, num_experts, dtype=wide_dtype(weight.dtype))
    routed = 0 if top_k == ALL else num_tokens * top_k
    return (
        torch.empty_like(x),
        up_weight.new_empty(_pre_shape(num_tokens, top_k, up_weight) if keep else 0),
        logits,
        logits.new_empty(num_tokens, num_experts if top_k == ALL else top_k),
        logits.new_empty(num_tokens, top_k, dtype=torch.int32),
        logits.new_empty(routed, dtype=torch.int32),
        logits.new_empty(0 if top_k == ALL else num_experts + 1, dtype=torch.int32),
        logits.new_empty(2 * num_experts + 2 if want_sums else 0),
    )


@ops.define(
    "moe_forward(Tensor x, Tensor? hidden_weight, Tensor? hidden_bias, Tensor weight, Tensor? bias, Tensor? noise,"
    " Tensor? selection_bias, Tensor? mask, Tensor up_weight, Tensor? up_bias, Tensor down_weight, Tensor? down_bias,"
    " int top_k, str activation, str router, bool renormalize, bool residual, bool keep, bool want_sums)"
    " -> (Tensor y, Tensor pre, Tensor logits, Tensor weights, Tensor indices, Tensor order, Tensor offsets,"
    " Tensor sums)",
    fake=_moe_forward_fake,
    compute="up_weight",
)
def moe_forward(
    backend: ModuleType,
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
    keep: bool,
    want_sums: bool,
) -> tuple[Tensor, ...]:
    logits_TE, weights_TK, indices_TK, partials_BL = backend.gate(
        x_TH, hidden_weight_GH, hidden_bias_G, weight_EG, bias_E, noise_TE, selection_bias_E, mask_T,
        top_k, router, renormalize,
    )  # fmt: skip
    sums_L = partials_BL.sum(0) if want_sums else _nothing(logits_TE)
    if top_k == ALL:
        live_TH = _without_masked(x_TH, mask_T)
        weighted_act_TEF, pre = backend.all_up(live_TH, weights_TK, up_weight_EUH, up_bias_EU, activation, keep)
        y_TH = backend.all_down(
            weighted_act_TEF, weights_TK, down_weight_EHF, down_bias_EH, live_TH if residual else None, x_TH.dtype
        )
        order_S, offsets_O = _nothing(indices_TK), _nothing(indices_TK)
    else:
        order_S, offsets_O = backend.plan(indices_TK, len(up_weight_EUH), partials_BL)
        y_TH, pre = _serve(
            backend, x_TH, weights_TK, order_S, offsets_O, up_weight_EUH, up_bias_EU, down_weight_EHF, down_bias_EH,
            x_TH if residual else None, mask_T, activation, keep,
        )  # fmt: skip
    return y_TH, _given(pre, up_weight_EUH), logits_TE, weights_TK, indices_TK, order_S, offsets_O, sums_L


def _without_masked(tensor_TH: Tensor, mask_T: Tensor | None) -> Tensor:
    """A masked row can hold NaN, which a weight of zero does not silence."""
    return tensor_TH if mask_T is None else torch.where(mask_T[:, None], tensor_TH, 0)


def _moe_backward_fake(
    grad_y, grad_sums, x, hidden_weight, hidden_bias, weight, mask, up_weight, up_bias, down_weight, down_bias,
    pre, logits, weights, indices, order, offsets, top_k, activation, router, renormalize, residual, need_x,
    need_experts,
):  # fmt: skip
    experts = [torch.empty_like(t) if t is not None and need_experts else _nothing(x)
               for t in (up_weight, up_bias, down_weight, down_bias)]  # fmt: skip
    return (
        torch.empty_like(x) if need_x else _nothing(x),
        _nothing(x) if hidden_weight is None else torch.empty_like(hidden_weight),
        _nothing(x) if hidden_weight is None else hidden_weight.new_empty(hidden_weight.shape[0]),
        torch.empty_like(weight),
        weight.new_empty(weight.shape[0]),
        torch.empty_like(logits),
        *experts,
    )


@ops.define(
    "moe_backward(Tensor grad_y, Tensor? grad_sums, Tensor x, Tensor? hidden_weight, Tensor? hidden_bias,"
    " Tensor weight, Tensor? mask, Tensor up_weight, Tensor? up_bias, Tensor down_weight, Tensor? down_bias,"
    " Tensor pre, Tensor logits, Tensor weights, Tensor indices, Tensor order, Tensor offsets, int top_k,"
    " str activation, str router, bool renormalize, bool residual, bool need_x, bool need_experts)"
    " -> (Tensor grad_x, Tensor grad_hidden_weight, Tensor grad_hidden_bias, Tensor grad_weight, Tensor grad_bias,"
    " Tensor grad_logits, Tensor grad_up_weight, Tensor grad_up_bias, Tensor grad_down_weight,"
    " Tensor grad_down_bias)",
    fake=_moe_backward_fake,
    compute="up_weight",
)
def moe_backward(
    backend: ModuleType,
    grad_y_TH: Tensor,
    grad_sums_L: Tensor | None,
    x_TH: Tensor,
    hidden_weight_GH: Tensor | None,
    hidden_bias_G: Tensor | None,
    weight_EG: Tensor,
    mask_T: Tensor | None,
    up_weight_EUH: Tensor,
    up_bias_EU: Tensor | None,
    down_weight_EHF: Tensor,
    down_bias_EH: Tensor | None,
    pre: Tensor,
    logits_TE: Tensor,
    weights_TK: Tensor,
    indices_TK: Tensor,
    order_S: Tensor,
    offsets_O: Tensor,
    top_k: int,
    activation: str,
    router: str,
    renormalize: bool,
    residual: bool,
    need_x: bool,
    need_experts: bool,
) -> tuple[Tensor, ...]:
    grad_x: Tensor | None
    if top_k == ALL:
        grads: list[Tensor | None] = [None] * 4
        live_TH, live_grad_TH = _without_masked(x_TH, mask_T), _without_masked(grad_y_TH, mask_T)
        grad_pre_TEU, weighted_act_TEF, grad_weights_SP = backend.all_down_backward(
            live_grad_TH, pre, weights_TK, down_weight_EHF, down_bias_EH, activation
        )
        if need_experts:
            grads[2:] = backend.all_down_weight_grad(
                live_grad_TH, weighted_act_TEF, weights_TK, down_bias_EH is not None
            )
            grads[:2] = backend.all_up_weight_grad(live_TH, grad_pre_TEU, up_bias_EU is not None)
        grad_x = backend.all_up_backward(grad_pre_TEU, up_weight_EUH) if need_x else None
        expert_grads = [_given(grad, x_TH) for grad in grads]
    else:
        grad_x, grad_weights_SP, expert_grads = _serve_backward(
            backend, grad_y_TH, x_TH, weights_TK, up_weight_EUH, up_bias_EU, down_weight_EHF, down_bias_EH,
            pre, order_S, offsets_O, activation, need_x, need_experts,
        )  # fmt: skip
    grad_x_TH, grad_hidden_weight, grad_hidden_bias, grad_weight, grad_bias, grad_logits_TE = backend.gate_backward(
        grad_weights_SP, grad_sums_L, grad_x, grad_y_TH if residual else None, logits_TE, weights_TK, indices_TK,
        mask_T, x_TH, hidden_weight_GH, hidden_bias_G, weight_EG, router, renormalize,
    )  # fmt: skip
    router_grads = (_given(grad_hidden_weight, x_TH), _given(grad_hidden_bias, x_TH), grad_weight, grad_bias)
    return _given(grad_x_TH, x_TH), *router_grads, grad_logits_TE, *expert_grads


# The autograd Functions.


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, selection_bias, mask, top_k, router, renormalize):
        weights, indices, sums = route_forward(logits, selection_bias, mask, top_k, router, renormalize)
        ctx.save_for_backward(logits, weights, indices, mask)
        ctx.router, ctx.renormalize = router, renormalize
        ctx.mark_non_differentiable(indices)
        return weights, indices, sums

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_weights, _, grad_sums):
        grad = route_backward(grad_weights.contiguous(), grad_sums, *ctx.saved_tensors, ctx.router, ctx.renormalize)
        return grad, None, None, None, None, None


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, indices, weights, up_weight, up_bias, down_weight, down_bias, activation):
        y, pre, order, offsets = experts_forward(
            x, indices, weights, up_weight, up_bias, down_weight, down_bias, activation, True
        )
        ctx.save_for_backward(
            x, indices, weights, up_weight, up_bias, down_weight, down_bias, pre, order, offsets
        )  # fmt: skip
        ctx.activation = activation
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        saved = ctx.saved_tensors  # once: gradient checkpointing lets them be unpacked only once
        need_x, _, _, *need_experts = ctx.needs_input_grad
        grad_x, grad_weights, *grads = experts_backward(
            grad_y.contiguous(), *saved, ctx.activation, need_x, any(need_experts)
        )
        up_bias, down_bias = saved[4], saved[6]
        grads = _existing(grads, (True, up_bias is not None, True, down_bias is not None), any(need_experts))
        return grad_x if need_x else None, None, grad_weights, *grads, None


class _MoE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x, hidden_weight, hidden_bias, weight, bias, noise, selection_bias, mask,
        up_weight, up_bias, down_weight, down_bias, top_k, activation, router, renormalize, residual,
    ):  # fmt: skip
        y, pre, logits, weights, indices, order, offsets, sums = moe_forward(
            x, hidden_weight, hidden_bias, weight, bias, noise, selection_bias, mask,
            up_weight, up_bias, down_weight, down_bias, top_k, activation, router, renormalize, residual, True, True,
        )  # fmt: skip
        ctx.save_for_backward(
            x, hidden_weight, hidden_bias, weight, mask, up_weight, up_bias, down_weight, down_bias,
            pre, logits, weights, indices, order, offsets,
        )  # fmt: skip
        ctx.settings = (top_k, activation, router, renormalize, residual)
        ctx.has_bias, ctx.has_noise = bias is not None, noise is not None
        ctx.mark_non_differentiable(logits, weights, indices)
        ctx.set_materialize_grads(False)  # else autograd fills four tensors with zeros that nobody reads
        return y, sums, logits, weights, indices

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, grad_sums, *_):
        saved = ctx.saved_tensors  # once: gradient checkpointing lets them be unpacked only once
        grad_y = torch.zeros_like(saved[0]) if grad_y is None else grad_y
        _, hidden_weight, hidden_bias, _, _, _, up_bias, _, down_bias, *_ = saved
        need_x, need_experts = ctx.needs_input_grad[0], any(ctx.needs_input_grad[8:12])
        grad_x, grad_hidden_weight, grad_hidden_bias, grad_weight, grad_bias, grad_logits, *experts = moe_backward(
            grad_y.contiguous(), grad_sums, *saved, *ctx.settings, need_x, need_experts
        )
        gate = (hidden_weight is not None, hidden_bias is not None, True, ctx.has_bias, ctx.has_noise)
        grads = _existing((grad_hidden_weight, grad_hidden_bias, grad_weight, grad_bias, grad_logits), gate, True)
        exists = (True, up_bias is not None, True, down_bias is not None)
        experts = _existing(experts, exists, need_experts)
        return grad_x if need_x else None, *grads, None, None, *experts, None, None, None, None, None


def _existing(grads: Any, exists: tuple[bool, ...], needed: bool) -> list[Tensor | None]:
    """None where there was no input or nobody asked."""
    return [grad if needed and there else None for grad, there in zip(grads, exists)]


# What the layers and the public functions call.


def run_moe(
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
    residual: bool = False,
    want_sums: bool = False,
) -> tuple[Tensor, Tensor | None, Routing]:
    """-> y_TH, the sums for the losses if they are wanted, and what the router decided."""
    experts = (up_weight_EUH, up_bias_EU, down_weight_EHF, down_bias_EH)
    gate = (x_TH, hidden_weight_GH, hidden_bias_G, weight_EG, bias_E, noise_TE, selection_bias_E, mask_T)
    settings = (top_k, activation, router, renormalize, residual)
    dtype = compute_dtype(up_weight_EUH)
    if records_gradient(*gate, *experts):
        y, sums, logits, weights, indices = _MoE.apply(*gate, *_cast(experts, dtype), *settings)
    elif (layer := _whole_layer(x_TH, dtype, top_k)) is not None:
        y, logits, weights, indices, partials_BL = layer(*gate, *experts, *settings, dtype)
        sums = partials_BL.sum(0) if want_sums else None
    else:
        cast = _cast(experts, dtype)
        y, _, logits, weights, indices, _, _, sums = moe_forward(*gate, *cast, *settings, False, want_sums)
    return y, sums, Routing(weights, indices, logits)


def _whole_layer(x: Tensor, dtype: torch.dtype, top_k: int) -> Callable[..., Any] | None:
    """A backend's own forward without gradients, to be called directly: for one token, the way there costs more."""
    if top_k == ALL or ops.is_watched(x):
        return None
    return getattr(dispatch.pick(x.device, dtype), "layer", None)


def records_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _cast(experts: tuple[Tensor | None, ...], dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    return tuple(t if t is None else t.to(dtype) for t in experts)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The experts' type as autocast wants it. x is converted where it is multiplied, and the gate stays fp32."""
    device = weight.device.type
    if not torch.is_autocast_enabled(device) or weight.dtype == torch.float64:
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
    experts = validation.check_experts(up_weight, up_bias, down_weight, down_bias, activation)
    num_experts, hidden = up_weight.shape[0], up_weight.shape[2]
    validation.check_shape("router_weight", router_weight, (num_experts, hidden))
    validation.check_floating("router_weight", router_weight)
    x_TH = validation.check_input(x, hidden, up_weight)
    validation.check_device("router_weight", router_weight, "x is", x.device)
    mask_T = validation.check_mask(mask, x)
    number = validation.check_top_k(top_k, num_experts)
    y_TH, _, _ = run_moe(
        x_TH, None, None, router_weight.contiguous(), None, None, None, mask_T, *experts,
        number, activation, router, renormalize,
    )  # fmt: skip
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
    if logits.ndim != 2:
        raise ValueError(f"logits must be [tokens, experts], got shape {tuple(logits.shape)}")
    number = validation.check_top_k(top_k, logits.shape[1])
    mask_T = validation.check_mask(mask, logits)
    logits_TE = logits.to(wide_dtype(logits.dtype)).contiguous()
    if records_gradient(logits_TE):
        weights_TK, indices_TK, _ = _Route.apply(logits_TE, None, mask_T, number, router, renormalize)
    else:
        weights_TK, indices_TK, _ = route_forward(logits_TE, None, mask_T, number, router, renormalize)
    routing = Routing(weights_TK, indices_TK, logits_TE)
    return with_every_expert(routing, mask_T) if number == ALL else routing


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
    experts = validation.check_experts(up_weight, up_bias, down_weight, down_bias, activation)
    x_TH = validation.check_input(x, up_weight.shape[2], up_weight)
    indices_TK, weights_TK = validation.check_slots(indices, weights, x)
    weights_TK = weights_TK.to(wide_dtype(up_weight.dtype))
    cast = _cast(experts, compute_dtype(up_weight))
    tensors = (x_TH, indices_TK, weights_TK, *cast)
    if records_gradient(*tensors):
        y_TH = _Experts.apply(*tensors, activation)
    else:
        y_TH, *_ = experts_forward(*tensors, activation, False)
    return y_TH.view(x.shape)


def is_gated(activation: str) -> bool:
    return activation in GATED
