"""A feed-forward part with experts of passages beside it: ffn(x) + sum of softmax(score) times expert(x).

The experts run on tokens that are real, and that come after the passages where those are in the prompt too. Which
tokens these are, a feed-forward part is not told: it sees rows of hidden states, in decoding one at a time. So the
stack of blocks around it is watched, which gets the attention mask, and knows how much its cache holds.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import kernels
from kernels import LowRankExperts
from moe_retrieval.errors import InputError


class Injection(NamedTuple):
    """The experts of a batch of samples."""

    deltas: LowRankExperts
    base: LowRankExperts | None
    """None where it was added to the deltas already."""
    scores_P: Tensor
    cu_passages: Tensor
    """[samples + 1]: sample i has the passages cu_passages[i] : cu_passages[i + 1]."""
    max_passages: int
    starts_B: Tensor | None = None
    """The place in each sample's prompt, padding included, from which on the experts run; None is from the first."""


class PassageExperts(nn.Module):
    """In the place of `ffn`, which it has inside. Without an injection, it is `ffn` to the bit."""

    def __init__(self, ffn: nn.Module):
        super().__init__()
        self.ffn = ffn
        self.injection: Injection | None = None
        self.live_BL: Tensor | None = None
        """Of the call that goes on: which tokens the experts run on; None is all."""
        self.has_prompt = True
        """Whether the rows here are those of the prompt, in which experts have a place to start."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.ffn(x)
        if self.injection is None or self.injection.max_passages == 0:
            return y
        deltas, base, scores_P, cu_passages, most, _ = self.injection
        if x.shape[0] != len(cu_passages) - 1:
            raise InputError(f"the experts are of {len(cu_passages) - 1} samples, and the batch has {x.shape[0]}")
        if x.shape[-1] != deltas.enter_PRH.shape[-1]:
            raise InputError(
                f"the deltas are of another model: their hidden size is {deltas.enter_PRH.shape[-1]}, and that of the "
                f"layer is {x.shape[-1]}"
            )
        if not torch.is_autocast_enabled(x.device.type):
            deltas, base = deltas.to(x.dtype), base if base is None else base.to(x.dtype)
        return y + kernels.generated_experts(x, deltas, scores_P, base, cu_passages, most, mask=self.live_BL)

    @contextmanager
    def injected(self, injection: Injection | None) -> Iterator[None]:
        """Inside, the experts run. With gradient checkpointing, the backward pass belongs inside, too."""
        before, self.injection = self.injection, injection
        try:
            yield
        finally:
            self.injection, self.live_BL = before, None

    def watch(self, stack: nn.Module, has_prompt: bool) -> None:
        """`stack`: the module that is called with token ids and an attention mask and runs the blocks."""
        self.has_prompt = has_prompt
        stack.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.injection is not None:
            given = inspect.signature(stack.forward).bind_partial(*args, **kwargs).arguments
            tokens, cache = given.get("input_ids"), given.get("past_key_values")
            tokens = given["inputs_embeds"] if tokens is None else tokens
            first = 0 if cache is None else int(cache.get_seq_length())
            places = torch.arange(first, first + tokens.shape[1], device=tokens.device)
            starts_B = self.injection.starts_B if self.has_prompt else None
            self.live_BL = _live(places, given.get("attention_mask"), starts_B)


def _live(place_L: Tensor, mask_BS: Tensor | None, starts_B: Tensor | None) -> Tensor | None:
    """`mask_BS` is of all tokens so far, the call's come last. -> [B, L]"""
    live = None
    if mask_BS is not None:
        if mask_BS.ndim != 2 or mask_BS.shape[1] <= place_L[-1]:
            raise InputError(
                "the experts need an attention mask of [samples, tokens so far], from which padding can be told; got "
                f"shape {tuple(mask_BS.shape)}"
            )
        live = mask_BS[:, place_L].bool()
    if starts_B is not None:
        behind = place_L >= starts_B[:, None]
        live = behind if live is None else live & behind
    return live
