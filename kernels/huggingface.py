"""Mixture-of-experts models of `transformers` on our experts.

    kernels.register_with_transformers()
    model.set_experts_implementation("moe_kernels")

A model keeps its router, its parameters and their names; what runs on our kernels is the experts' part of each layer.
`docs/huggingface.md` lists the model families and their state.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from kernels import autocast
from kernels.activations import activate
from kernels.functional import expert_mlp
from kernels.nomic import load_nomic_moe as load_nomic_moe
from kernels.routing import with_one_unused

IMPLEMENTATION = "moe_kernels"

PLAIN, GATED = ("gelu", "gelu_tanh", "relu", "silu"), ("swiglu", "geglu")


def register_with_transformers() -> None:
    """Adds the experts implementation "moe_kernels" to transformers, for `model.set_experts_implementation` and
    `from_pretrained(..., experts_implementation=...)`. Calling it again changes nothing.
    """
    try:
        from transformers.integrations.moe import ExpertsInterface
    except ImportError as error:
        raise ImportError(f"register_with_transformers needs transformers >= 5.17: {error}") from error
    # A mark on the function; as a decorator it would load the compiler with this module.
    torch.compiler.assume_constant_result(_find_gate)
    ExpertsInterface.register(IMPLEMENTATION, experts_forward)


class _Gate(NamedTuple):
    """What stands between the two matrices of an expert, in our terms; no activation: not among ours."""

    activation: str | None
    interleaved: bool


def experts_forward(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What transformers calls in place of an experts module's own forward: [T, H], [T, K], [T, K] -> [T, H]."""
    gate = _find_gate(experts, getattr(experts, "act_fn", None))
    if gate.activation is None:
        return _on_their_path(experts)(experts, hidden_states, top_k_index, top_k_weights)
    if experts.is_transposed and not torch.compiler.is_compiling():
        for parameter in (_up_weight(experts), experts.down_proj):
            _lay_out(parameter)

    up, down = _stacks(experts)
    is_copied = gate.interleaved or not up[0].is_contiguous()
    if is_copied and top_k_index.numel() < len(up[0]) and not torch.compiler.is_compiling():
        up, down, top_k_index = _only_needed(up, down, top_k_index)
    if gate.interleaved:
        up = _gate_half_first(up[0]), None if up[1] is None else _gate_half_first(up[1])
    x = hidden_states
    if x.dtype != up[0].dtype and not autocast.is_on(x.device.type):
        x = x.to(up[0].dtype)
    if getattr(experts, "has_post_expert_norm", False):
        y = _normalised(experts, x, top_k_index, top_k_weights, up, down, gate.activation)
    else:
        y = expert_mlp(x, top_k_index, top_k_weights, *up, *down, activation=gate.activation)
    return y.to(hidden_states.dtype)


def _on_their_path(experts: Any) -> Callable[..., Tensor]:
    """Transformers' own default, or the module's plain forward where torch's grouped_mm refuses its weights."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    for weight in (_up_weight(experts), experts.down_proj):
        rows_are_aligned = weight.shape[2] * weight.element_size() % 16 == 0
        if not rows_are_aligned or weight.dtype == torch.float64:
            return type(experts).forward.__wrapped__
    return ALL_EXPERTS_FUNCTIONS["grouped_mm"]


def _normalised(
    experts: Any,
    x_TH: Tensor,
    indices_TK: Tensor,
    weights_TK: Tensor,
    up: "_Stack",
    down: "_Stack",
    activation: str,
) -> Tensor:
    """A norm between an expert's output and its weight: every slot is a token of its own, and the sum is made here."""
    x_SH = x_TH.repeat_interleave(indices_TK.shape[1], dim=0)
    indices_S1 = indices_TK.reshape(-1, 1)
    ones_S1 = torch.ones_like(indices_S1, dtype=torch.float32)
    y_SH = experts.post_expert_norm(expert_mlp(x_SH, indices_S1, ones_S1, *up, *down, activation=activation))
    unused_S1 = with_one_unused(indices_S1, len(up[0])) == len(up[0])
    weights_S1 = weights_TK.reshape(-1, 1).masked_fill(unused_S1, 0)
    return (y_SH * weights_S1).view(*indices_TK.shape, x_TH.shape[1]).sum(1)


# The parameters, as the kernels read them.


_Stack = tuple[Tensor, Tensor | None]
"""Weights, bias."""


def _stacks(experts: Any) -> tuple[_Stack, _Stack]:
    """-> (up_weight [E, U, H], up_bias), (down_weight [E, H, F], down_bias)"""
    up_weight, down_weight = _up_weight(experts), experts.down_proj
    up_bias = getattr(experts, f"{_up_name(experts)}_bias") if experts.has_bias else None
    down_bias = experts.down_proj_bias if experts.has_bias else None
    if experts.is_transposed:
        up_weight, down_weight = up_weight.transpose(1, 2), down_weight.transpose(1, 2)
    return (up_weight, up_bias), (down_weight, down_bias)


def _up_name(experts: Any) -> str:
    return "gate_up_proj" if experts.has_gate else "up_proj"


def _up_weight(experts: Any) -> Tensor:
    return getattr(experts, _up_name(experts))


_laid_out: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""The parameters that were moved, as keys."""


def _lay_out(parameter: Tensor) -> None:
    """Moves a frozen parameter's memory, once, so that its transpose is contiguous and no call has to copy it.

    Shape and values stay; a contiguous copy of the stack lives for the length of this call. One that requires gradients
    lies as transformers made it, and goes back to that when it is trained after all: a fused optimizer reads it and the
    state that it may have of it, now or from a checkpoint, in the order of memory. Only for a plain parameter that has
    its memory to itself: one that is sharded, quantised or a part of a flat buffer stays where it is.
    """
    if type(parameter) is not nn.Parameter:
        return
    with torch.inference_mode(False), torch.no_grad():
        if parameter.requires_grad:
            if _laid_out.pop(parameter, False):
                parameter.data = parameter.data.contiguous()
        elif parameter.is_contiguous() and parameter.untyped_storage().nbytes() == parameter.nbytes:
            parameter.data = parameter.data.transpose(1, 2).contiguous().transpose(1, 2)
            _laid_out[parameter] = True


def _only_needed(up: _Stack, down: _Stack, indices_TK: Tensor) -> tuple[_Stack, _Stack, Tensor]:
    """The experts that few tokens need, and their new indices: a stack that a call has to copy may hold many more."""
    num_experts = len(up[0])
    indices_TK = with_one_unused(indices_TK, num_experts)
    needed = indices_TK[indices_TK < num_experts].unique()
    if not len(needed):
        needed = needed.new_zeros(1)
    renamed = torch.full((num_experts + 1,), len(needed), device=needed.device)  # the last for what no expert computes
    renamed[needed] = torch.arange(len(needed), device=needed.device)
    up, down = ((weight[needed], None if bias is None else bias[needed]) for weight, bias in (up, down))
    return up, down, renamed[indices_TK]


def _gate_half_first(stack: Tensor) -> Tensor:
    """Rows gate0, up0, gate1, up1, ... -> gate0, gate1, ..., up0, up1, ...: a copy of the stack at each call, and of
    its gradient, because no strides express it."""
    return stack.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)


# Which of our activations a module's gate is.

_warned: set[type] = set()

_gates: WeakKeyDictionary[Any, dict[tuple[Any, ...], _Gate]] = WeakKeyDictionary()
"""What was recognised: by activation function (by class, where there is none) and what else the gate depends on."""


def _find_gate(experts: Any, act_fn: Any) -> _Gate:
    """`act_fn` is the module's own; as an argument, it is among what a compiled graph is guarded by."""
    try:
        known = _gates.setdefault(type(experts) if act_fn is None else act_fn, {})
    except TypeError:  # a callable that has no weak reference
        return _recognise(experts)
    method = getattr(experts, "_apply_gate", None)
    key = type(experts), getattr(method, "__func__", method), *_settings(experts), *_settings(act_fn)
    if key not in known:
        known[key] = _recognise(experts)
    return known[key]


def _settings(owner: Any) -> tuple[tuple[str, Any], ...]:
    """The plain attributes: a limit, a scale, a flag."""
    return tuple(item for item in getattr(owner, "__dict__", {}).items() if type(item[1]) in (bool, int, float, str))


def _recognise(experts: Any) -> _Gate:
    """Finds the activation by trying the module's own gate: flags say nothing about a clamp, a scale or a softcap.

    The probe spans 1e-2 to 1e4 in both signs, so that a limit shows and gelu differs from its tanh approximation.
    """
    weight = experts.down_proj
    generator = torch.Generator().manual_seed(0)
    magnitude = 10 ** torch.empty(64, 2 * 64).uniform_(-2, 4, generator=generator)
    pre = (magnitude * torch.randn(magnitude.shape, generator=generator).sign()).to(weight.device)
    with torch.no_grad(), autocast.off(weight.device.type):
        if experts.has_gate:
            got = experts._apply_gate(pre)
            candidates = [_Gate(activation, interleaved) for activation in GATED for interleaved in (False, True)]
        else:
            got = experts.act_fn(pre)
            candidates = [_Gate(activation, False) for activation in PLAIN]
        for gate in candidates:
            inputs = torch.cat([pre[:, ::2], pre[:, 1::2]], 1) if gate.interleaved else pre
            want = activate(inputs, str(gate.activation))
            if got.shape == want.shape and torch.allclose(got.float(), want, rtol=1e-4, atol=1e-5):
                return gate
    if type(experts) not in _warned:
        _warned.add(type(experts))
        warnings.warn(
            f"{type(experts).__name__} has a gate that {IMPLEMENTATION} does not have (its own are "
            f"{', '.join((*PLAIN, *GATED))}): it runs on transformers' own path",
            stacklevel=2,
        )
    return _Gate(None, False)
