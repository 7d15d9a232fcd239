"""Dense models turned into mixtures of experts: every expert starts as the feed-forward block that it replaces.

A feed-forward block is a pair of Linears with an activation between them. `upcycle` puts the experts where the first
Linear was and an identity where the activation and the second were, so that dropout, norm and residual around them
stay the model's own. Which tokens are padding, the experts see in the attention mask (`upcycled.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from kernels import validation
from kernels.activations import ACTIVATIONS
from kernels.routing import ALL
from kernels.upcycled import UpcycledMoE, takes_mask

FFN_NAMES = (
    ("intermediate.dense", "output.dense"),  # BERT, RoBERTa, XLM-R, MPNet, DPR, ELECTRA, DeBERTa
    ("ffn.lin1", "ffn.lin2"),  # DistilBERT
    ("mlp.fc1", "mlp.fc2"),  # CLIP, SigLIP
    ("fc1", "fc2"),  # BART
    ("ffn", "ffn_output"),  # ALBERT, whose layers share one block
)
"""Where the two Linears of a feed-forward block are, relative to their Transformer layer."""

RECIPE = "moe_upcycling"
"""The config entry that says how a saved model was upcycled."""


Model = TypeVar("Model", bound=nn.Module)


class _Block(NamedTuple):
    """A feed-forward block inside a model."""

    name: str
    layer: nn.Module
    up: nn.Module
    down: nn.Module


def upcycle(
    model: Model,
    *,
    num_experts: int,
    top_k: int | str,
    layers: Sequence[int] | str | None = None,
    ffn: tuple[str, str] | None = None,
    **moe_kwargs: Any,
) -> Model:
    """Replaces feed-forward blocks by mixtures of experts, in place, without changing the model's output; returns it.

    - `layers`: which blocks, by index; "every-2" for the second, fourth, ...; None for all.
    - `ffn`: the names of a block's two Linears relative to its layer, as in ("intermediate.dense", "output.dense").
      None: BERT, RoBERTa, XLM-R, MPNet, DPR, DistilBERT and others are found by the names that they use.
    - `moe_kwargs`: further arguments of `MoE`. The activation and the biases are the model's.

    Every expert is a copy of the block, so the weights of the chosen experts must sum to 1: settings under which they
    do not raise. The activation must be one that the layers have. Padding is not routed.

    A model of transformers is saved by `save_pretrained` and loaded by `kernels.upcycling.from_pretrained`.

    >>> import torch, kernels
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32))
    >>> _ = kernels.upcycle(model, num_experts=4, top_k=2, layers="every-2")
    >>> type(model.encoder.layer[1].intermediate.dense).__name__
    'UpcycledMoE'
    """
    _check_sum(num_experts, top_k, **moe_kwargs)
    ffn = _find_ffn(model) if ffn is None else ffn
    blocks = list(_blocks(model, ffn))
    if not blocks:
        raise ValueError(f"ffn: {type(model).__name__} has no layer with the Linears {ffn[0]!r} and {ffn[1]!r}")
    chosen = _choose(layers, len(blocks))
    for index in chosen:
        _replace(model, blocks[index], ffn, num_experts, top_k, moe_kwargs)
    config = getattr(model, "config", None)
    if config is not None:
        recipe = {"num_experts": num_experts, "top_k": top_k, "layers": chosen, "ffn": list(ffn), **moe_kwargs}
        setattr(config, RECIPE, [*getattr(config, RECIPE, []), recipe])
    return model


def _check_sum(num_experts: int, top_k: int | str, **moe_kwargs: Any) -> None:
    router, renormalize = moe_kwargs.get("router", "softmax"), moe_kwargs.get("renormalize", True)
    validation.check_choices(router=router)
    validation.check_positive(num_experts=num_experts)
    everyone = validation.check_top_k(top_k, num_experts) in (ALL, num_experts)
    if not (renormalize or router == "topk_softmax" or (everyone and router == "softmax")):
        raise ValueError(
            f"the experts' weights do not sum to 1 with router={router!r}, renormalize={renormalize}, top_k={top_k!r}, "
            "so the model's output would change: use renormalize=True, router='topk_softmax', or the softmax router "
            "with top_k='all'"
        )


def _find_ffn(model: nn.Module) -> tuple[str, str]:
    for names in FFN_NAMES:
        if next(_blocks(model, names), None):
            return names
    raise ValueError(
        f"no feed-forward block was found in {type(model).__name__}: pass ffn=(name of the first Linear, name of the "
        f"second), relative to a layer; known are {', '.join(map(str, FFN_NAMES))}"
    )


def _blocks(model: nn.Module, ffn: tuple[str, str]) -> Iterator[_Block]:
    """Every feed-forward block, in the order of the model; those that are upcycled already keep their place."""
    for name, layer in model.named_modules():
        try:
            up, down = layer.get_submodule(ffn[0]), layer.get_submodule(ffn[1])
        except AttributeError:
            continue
        if isinstance(up, UpcycledMoE) or (isinstance(up, nn.Linear) and isinstance(down, nn.Linear)):
            yield _Block(name, layer, up, down)


def _choose(layers: Sequence[int] | str | None, count: int) -> list[int]:
    if layers is None:
        return list(range(count))
    if isinstance(layers, str):
        prefix, _, step = layers.partition("-")
        if prefix != "every" or not step.isdecimal() or not 1 <= int(step) <= count:
            raise ValueError(f'layers must be a list of indices or "every-N", N from 1 to {count}; got {layers!r}')
        return list(range(int(step) - 1, count, int(step)))
    chosen = []
    for index in layers:
        if not isinstance(index, int) or isinstance(index, bool) or not -count <= index < count:
            raise ValueError(f"layers must be indices below {count} (the number of layers), got {index!r}")
        chosen.append(index % count)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"layers must name at least one layer, and none twice; got {layers!r}")
    return sorted(chosen)


def _replace(
    model: nn.Module,
    block: _Block,
    ffn: tuple[str, str],
    num_experts: int,
    top_k: int | str,
    moe_kwargs: dict[str, Any],
) -> None:
    """The steps:

    1. find the activation between the two Linears;
    2. make the experts, all of them copies;
    3. put them where the first Linear was, identities where the activation and the second were;
    4. let the layer around them say what padding is.
    """
    up, down = block.up, block.down
    if isinstance(up, UpcycledMoE):
        raise ValueError(f"layers: {block.name} is upcycled already")
    assert isinstance(up, nn.Linear)
    assert isinstance(down, nn.Linear)
    if (up.in_features, up.out_features) != (down.out_features, down.in_features):
        raise ValueError(
            f"ffn: {block.name} maps {up.in_features} -> {up.out_features} and {down.in_features} -> "
            f"{down.out_features}: the second Linear must undo the first"
        )
    if not (up.weight.is_floating_point() and down.weight.is_floating_point()):
        raise TypeError(f"ffn: {block.name} has {up.weight.dtype} weights: upcycle before quantising")

    # 1
    holder, attribute, activation = _find_activation(block, ffn)
    own = {"activation": activation, "bias": up.bias is not None or down.bias is not None}
    for argument, value in own.items():
        if moe_kwargs.get(argument, value) != value:
            raise ValueError(f"{argument}={moe_kwargs[argument]!r}, but {block.name} has {argument}={value!r}")

    # 2
    moe = UpcycledMoE(up.in_features, up.out_features, num_experts=num_experts, top_k=top_k, **{**moe_kwargs, **own})
    moe.ffn = ffn
    moe.to(up.weight.device, up.weight.dtype).train(up.training)
    with torch.no_grad():
        for stack, weight in ((moe.experts.up_weight, up.weight), (moe.experts.down_weight, down.weight)):
            stack.copy_(weight.expand_as(stack))
        for biases, bias in ((moe.experts.up_bias, up.bias), (moe.experts.down_bias, down.bias)):
            if biases is not None:
                biases.zero_() if bias is None else biases.copy_(bias.expand_as(biases))

    # 3
    block.layer.set_submodule(ffn[0], moe)
    setattr(holder, attribute, nn.Identity())
    block.layer.set_submodule(ffn[1], nn.Identity())

    # 4
    mask_taker = _mask_taker(model, block.name)
    if mask_taker is not None:
        moe.watch(mask_taker)


def _find_activation(block: _Block, ffn: tuple[str, str]) -> tuple[nn.Module, str, str]:
    """-> the module that holds the block's activation, its attribute there, and our name for it"""
    holders = [block.layer.get_submodule(ffn[0].rpartition(".")[0]), block.layer]
    for holder in holders:
        found = {**vars(holder), **dict(holder.named_children())}
        for attribute, function in found.items():
            if "act" not in attribute or not _may_be_activation(function):
                continue
            activation = _recognise(function)
            if activation is None:
                raise ValueError(
                    f"the activation of {block.name}, {function!r}, is none of {', '.join(ACTIVATIONS)}: "
                    "the experts cannot reproduce it"
                )
            return holder, attribute, activation
    raise ValueError(
        f"no activation was found in {block.name}: the module that holds {ffn[0]!r} must have it as an attribute "
        "without parameters, whose name contains 'act'"
    )


def _may_be_activation(value: Any) -> bool:
    return not list(value.parameters()) if isinstance(value, nn.Module) else callable(value)


def _recognise(function: Callable[[Tensor], Tensor]) -> str | None:
    probe = torch.linspace(-8, 8, 1001)
    for name, (ours, _) in ACTIVATIONS.items():
        if torch.allclose(function(probe), ours(probe), rtol=1e-5, atol=1e-6):
            return name
    return None


def _mask_taker(model: nn.Module, block_name: str) -> nn.Module | None:
    """The innermost module around a block whose forward takes an attention mask; its attention, if that does too."""
    names = block_name.split(".") if block_name else []
    for depth in range(len(names), -1, -1):
        module = model.get_submodule(".".join(names[:depth]))
        if takes_mask(module):
            attention = [child for name, child in module.named_children() if "att" in name and takes_mask(child)]
            return attention[0] if attention else module
    return None


# Names for others: as if every expert were the model's own feed-forward block.


def export_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of an upcycled model, with an expert's tensors named after the block that it was copied from.

    In the layer `L` (say `encoder.layer.1`) with the Linears `up` and `down` (`intermediate.dense`, `output.dense`),
    `L.up.router.*` becomes `L.router.*`; row e of the stacks `L.up.experts.up_weight`, `up_bias`, `down_weight` and
    `down_bias` becomes `L.experts.e.up.weight`, `L.experts.e.up.bias`, `L.experts.e.down.weight` and
    `L.experts.e.down.bias`. Everything else keeps its name. `import_state_dict` takes it back.
    """
    state = dict(model.state_dict())
    for ours, theirs in _renamed(model):
        if isinstance(theirs, str):
            state[theirs] = state.pop(ours)
        else:
            state.update(zip(theirs, state.pop(ours).unbind()))
    return state


def import_state_dict(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads what `export_state_dict` made into a model that was upcycled in the same way."""
    state = dict(state)
    for ours, theirs in _renamed(model):
        names = [theirs] if isinstance(theirs, str) else theirs
        missing = [name for name in names if name not in state]
        if missing:
            raise KeyError(f"state lacks {', '.join(missing)}: was its model upcycled in the same way?")
        tensors = [state.pop(name) for name in names]
        state[ours] = tensors[0] if isinstance(theirs, str) else torch.stack(tensors)
    model.load_state_dict(state)


def _renamed(model: nn.Module) -> Iterator[tuple[str, str | list[str]]]:
    """(our name, theirs), or (our stack, one of their names for each expert)"""
    for name, moe in model.named_modules():
        if not isinstance(moe, UpcycledMoE):
            continue
        up, down = moe.ffn
        layer = name.removesuffix(up)
        for key in moe.router.state_dict():
            yield f"{name}.router.{key}", f"{layer}router.{key}"
        for key in moe.experts.state_dict():
            side, _, kind = key.partition("_")
            linear = up if side == "up" else down
            yield (
                f"{name}.experts.{key}",
                [f"{layer}experts.{expert}.{linear}.{kind}" for expert in range(moe.num_experts)],
            )


def from_pretrained(model_class: Any, directory: str | Path) -> nn.Module:
    """What `save_pretrained` of an upcycled model wrote: the model is built, upcycled as its config says, and loaded.

    `model_class` is a model of transformers or an Auto class: `from_pretrained(BertModel, "out")`. Their own
    `from_pretrained` knows nothing of experts, and would start the feed-forward blocks from nothing.
    """
    from safetensors.torch import load_file
    from transformers import AutoConfig

    directory = Path(directory)
    config = AutoConfig.from_pretrained(directory)
    recipes = getattr(config, RECIPE, None)
    if not recipes:
        raise ValueError(
            f"{directory / 'config.json'} has no {RECIPE!r}: this model was not saved after kernels.upcycle"
        )
    setattr(config, RECIPE, [])
    build = getattr(model_class, "from_config", None) or model_class._from_config
    model = build(config)
    for recipe in recipes:
        upcycle(model, **{**recipe, "ffn": tuple(recipe["ffn"])})
    state: dict[str, Tensor] = {}
    for file in sorted(directory.glob("model*.safetensors")):
        state.update(load_file(file))
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = sorted(set(missing) - set(getattr(model, "all_tied_weights_keys", ())))
    if missing or unexpected:
        raise ValueError(f"{directory} does not fit {type(model).__name__}: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model.eval()
