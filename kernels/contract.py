"""What a backend has: the contract between `functional.py`, which owns forward and backward, and what computes.

A backend is a module with

- `name`, `supports(device, dtype)`: whether it can run on tensors of that kind, and `prefers_bf16(device)`: whether it
  is faster in bf16 than in fp32 there;
- perhaps `is_beaten(dtype, rows)`: whether plain PyTorch is known to be faster at experts on so many tokens, so that
  "auto" leaves them to it;
- every function of `PRIMITIVES`, with the arguments, the results and the meaning that `reference.py` gives it there;
- any function of `FUSIONS`: several steps at once, where that is faster. What it lacks, its fallback does.

`Backend` finds out which are there when the module is loaded, and nothing asks again. The rules that every one keeps:

- Sums are accumulated in fp32 (fp64 for fp64 inputs). The router works in that type throughout.
- The same inputs give the same bits, for any number of threads.
- An index outside 0..E-1 is an unused slot: nothing of its token is read for it.
- Unassigned rows, and experts without a row, get zeros; no output element is left unwritten.
- x may have another float type than the expert weights (autocast): it is converted to theirs where it is multiplied.
- Tensors arrive contiguous, but for q, k and v of an attention, whose tokens may lie apart.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kernels.records import ExpertWeights
from kernels.reference import plain_residual_norm, plain_residual_norm_backward
from kernels.routing import Plan

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


def _never(dtype: torch.dtype, rows: int) -> bool:
    return False


class Backend:
    """A backend as it was resolved: its primitives, and its fusions or their fallbacks, as attributes."""

    def __init__(self, module: Any):
        missing = [name for name in ("name", "supports", "prefers_bf16", *PRIMITIVES) if not hasattr(module, name)]
        if missing:
            raise TypeError(f"backend {module.__name__} lacks {', '.join(missing)}: see kernels/contract.py")
        self.name: str = module.name
        self.supports: Callable[[torch.device, torch.dtype], bool] = module.supports
        self.prefers_bf16: Callable[[torch.device], bool] = module.prefers_bf16
        self.is_beaten: Callable[[torch.dtype, int], bool] = getattr(module, "is_beaten", _never)
        self.fusions = frozenset(name for name in FUSIONS if hasattr(module, name))
        """Those that the backend has itself."""
        for name in PRIMITIVES:
            setattr(self, name, getattr(module, name))
        for name, fallback in FUSIONS.items():
            own = getattr(module, name, None)
            setattr(self, name, own or (fallback and fallback(self)))

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


def _up_then_down(backend: Backend) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def up_and_down(
        x_TH: Tensor,
        plan: Plan,
        weights_TK: Tensor,
        experts: ExpertWeights,
        residual_TH: Tensor | None,
        activation: str,
        keep_pre: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor | None]:
        act_SF, pre_SU = backend.up(x_TH, plan, experts, weights_TK.shape[1], activation, keep_pre)
        return backend.down(act_SF, plan, weights_TK, experts, residual_TH, dtype), pre_SU

    return up_and_down


def _sum(own: Tensor, shared: Tensor) -> Tensor:
    return (own + shared).contiguous()


FUSIONS: dict[str, Callable[[Backend], Callable[..., Any]] | None] = {
    # up_and_down(x_TH, plan, weights_TK, experts, residual_TH, activation, keep_pre, dtype) -> rows_SH, pre_SU or None:
    # `up` and `down` in one, so that activations need not leave a cache.
    "up_and_down": _up_then_down,
    # layer(tokens, gate, experts, rule, activation, residual, dtype) -> y_TH, routing, partials_BL: a whole forward
    # without gradients, top_k not "all"; x is added if there is a residual, `dtype` is that of the products. It is
    # called past the op, because for one token calls cost more than the work. Without it, the op runs.
    "layer": None,
    # residual_norm(x, y, weight_H, bias_H, eps, dropout) and its backward: see `reference.plain_residual_norm`. Their
    # fallbacks are for an op that was recorded or compiled where a backend has them; `encoder.residual` does not ask
    # for them elsewhere, since PyTorch's own functions are faster.
    "residual_norm": lambda backend: plain_residual_norm,
    "residual_norm_backward": lambda backend: plain_residual_norm_backward,
    # add(own, shared) -> own + shared, contiguous. Where a sum is large and made anew at each call, a backend may have
    # memory for it that the system need not clear again.
    "add": lambda backend: _sum,
    # freeze(tokens_VH, positions_LH, norm, num_heads, dtype) -> an encoder that is then given its blocks, and runs:
    #   add_dense_block(attention, norm, dense, activation, ffn_norm)
    #   add_routed_block(attention, norm, gate, experts, top_k, router, renormalize, activation, ffn_norm)
    #   set_pooled(gate, experts, top_k, router, renormalize, activation)
    #   hidden_states(input_ids_T, cu_seqlens) -> hidden_TH;  embed(input_ids_T, cu_seqlens, normalize) -> [P, H]
    #   pool(hidden_TH, cu_seqlens, normalize) -> [P, H]
    # Norms are (weight, bias, eps); `attention` is weight and bias of qkv and out, `dense` of up and down, `gate` and
    # `experts` the fields of their records. Without it, an encoder's modules run one by one.
    "freeze": None,
}
"""Name -> what makes its fallback from a backend; None where the caller has another way."""
