"""A mixture of experts in the place of a feed-forward block, which learns about padding from the attention around it.

The mask is read by a pre-hook on the attention of each layer, and not on the model, because checkpointing runs the
layer again, when the model may have seen another batch.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from kernels.layers import MoE


class UpcycledMoE(MoE):
    """A `MoE` that asks the attention of its layer which tokens are padding."""

    ffn: tuple[str, str]
    """The names of the two Linears that were here, relative to their layer."""
    mask_position = 0
    """Of attention_mask, among the arguments of whoever shows it."""
    kept_BL: Tensor | None = None
    """The tokens that the last mask keeps."""
    position = 0
    """How much of the sequence was served since."""
    backward: int | None = None
    """The backward pass inside which the mask was seen, -1 outside of any, None where nobody shows a mask."""

    def watch(self, attention: nn.Module) -> None:
        """Read the mask that this module is called with: the layer's attention, or the layer, or the model."""
        self.mask_position = _parameters(attention).index("attention_mask")
        attention.register_forward_pre_hook(self.see_mask, with_kwargs=True)

    def see_mask(self, attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """The pre-hook."""
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = args[self.mask_position] if len(args) > self.mask_position else None
        others = (value for value in (*args, *kwargs.values()) if value is not mask)
        tokens = next((value for value in others if isinstance(value, Tensor)), None)
        self.kept_BL, self.position = None, 0
        if isinstance(mask, Tensor) and tokens is not None and _is_about(mask, tokens):
            self.kept_BL = _kept_tokens(mask)
        if not torch.compiler.is_compiling():
            self.backward = torch._C._current_graph_task_id()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """As in `MoE`, with the padding that the attention mask shows."""
        if not torch.compiler.is_compiling() and self.backward not in (None, torch._C._current_graph_task_id()):
            raise RuntimeError(
                "checkpointing runs these experts again without what shows them the attention mask: "
                "checkpoint whole Transformer layers"
            )
        if mask is None and self.kept_BL is not None and x.ndim == 3:
            stop = self.position + x.shape[1]  # a model may feed a sequence in chunks
            mask = self.kept_BL[:, self.position : stop].expand(x.shape[:-1])
            self.position = stop
        return super().forward(x, mask)


def takes_mask(module: nn.Module) -> bool:
    return "attention_mask" in _parameters(module)


def _parameters(module: nn.Module) -> list[str]:
    """The names of its forward's arguments."""
    return list(inspect.signature(type(module).forward).parameters)[1:]


def _is_about(mask: Tensor, tokens: Tensor) -> bool:
    """Whether the mask's last dimension is this call's tokens; with a cache, there are more keys than tokens."""
    return mask.ndim in (2, 4) and mask.shape[0] in (1, tokens.shape[0]) and mask.shape[-1] == tokens.shape[1]


def _kept_tokens(mask: Tensor) -> Tensor:
    """Which tokens an attention mask keeps, [B, L].

    2-d: true = keep. 4-d [B, heads or 1, queries or 1, L]: bool, true = attend, or a number that is added to the
    scores; a token that no query attends to is padding.
    """
    if mask.ndim == 2:
        return mask != 0
    remembers = not torch.compiler.is_compiling() and not mask.is_inference()
    if remembers:  # every layer of a forward gets the same tensor
        known: tuple[int, Tensor] | None = getattr(mask, "_kept_tokens", None)
        if known is not None and known[0] == mask._version:
            return known[1]
    attended = mask > NO_ATTENTION if mask.is_floating_point() else mask != 0
    kept_BL = attended.any(dim=2).any(dim=1)
    if remembers:
        mask._kept_tokens = mask._version, kept_BL  # type: ignore[attr-defined]
    return kept_BL


NO_ATTENTION = -1e3
"""Added to a score, this or less means that a key is not attended to."""
