"""Where the feed-forward parts of transformers' language models are, and passage experts in their place."""

from typing import Any, NamedTuple

from torch import nn

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.passage_experts import PassageExperts

LISTS = ("layers", "h", "block")
"""What the list of blocks is called in a stack"""

KINDS = {
    "LlamaMLP": "mlp",
    "Qwen2MLP": "mlp",
    "Qwen3MLP": "mlp",
    "GPT2MLP": "mlp",
    "T5DenseActDense": "layer.-1.DenseReluDense",
    "T5DenseGatedActDense": "layer.-1.DenseReluDense",
}
"""Feed-forward parts that take hidden states and return as many, and where a block has them"""


class _Place(NamedTuple):
    stack: nn.Module
    owner: nn.Module
    name: str
    """Of the feed-forward part in its owner"""
    has_prompt: bool
    """Not the decoder of a model that has an encoder"""


def replace_layer(model: Any, layer: int) -> PassageExperts:
    """Puts passage experts in the place of a block's feed-forward part, and freezes the model.

    `model` is one of transformers with Llama's, Qwen's, GPT-2's or T5's feed-forward parts. Layers count from 0; those
    of T5's decoder, which has no prompt and in which experts run on all tokens, come after those of its encoder.
    """
    place = _find(model, layer)
    ffn = getattr(place.owner, place.name)
    if isinstance(ffn, PassageExperts):
        raise InputError(f"layer {layer} has passage experts already")
    model.requires_grad_(False)
    experts = PassageExperts(ffn)
    setattr(place.owner, place.name, experts.train(ffn.training))
    experts.watch(place.stack, place.has_prompt)
    return experts


def _find(model: Any, layer: int) -> _Place:
    blocks = _blocks(model)
    if not 0 <= layer < len(blocks):
        raise InputError(f"layer {layer} does not exist: {type(model).__name__} has the layers 0 to {len(blocks) - 1}")
    stack, block = blocks[layer]
    for path in dict.fromkeys(KINDS.values()):
        *way, name = path.split(".")
        owner = block
        for step in way:
            owner = None if owner is None else _step(owner, step)
        found = getattr(owner, name, None)
        if isinstance(found, PassageExperts) or KINDS.get(type(found).__name__) == path:
            has_prompt = not model.config.is_encoder_decoder or stack is blocks[0][0]
            return _Place(stack, owner, name, has_prompt)
    parts = ", ".join(dict.fromkeys(type(part).__name__ for part in block.children()))
    raise InputError(
        f"layer {layer} of {type(model).__name__} has a feed-forward part of unknown kind, among {parts}; known are "
        f"{', '.join(KINDS)}"
    )


def _step(owner: Any, name: str) -> Any:
    return owner[int(name)] if isinstance(owner, nn.ModuleList) else getattr(owner, name, None)


def _blocks(model: Any) -> list[tuple[nn.Module, nn.Module]]:
    """Each block with its stack."""
    inner = getattr(model, getattr(model, "base_model_prefix", ""), model)
    inside = [getattr(inner, name, None) for name in ("encoder", "decoder")]
    stacks = [inner] if _list_of(inner) is not None else [stack for stack in inside if isinstance(stack, nn.Module)]
    found = [(stack, block) for stack in stacks for block in _list_of(stack) or ()]
    if not found:
        raise InputError(f"{type(model).__name__} has no list of blocks that is known: {', '.join(LISTS)}")
    return found


def _list_of(stack: Any) -> nn.ModuleList | None:
    lists = (getattr(stack, name, None) for name in LISTS)
    return next((found for found in lists if isinstance(found, nn.ModuleList)), None)
