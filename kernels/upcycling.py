"""Dense models turned into mixtures of experts: every expert starts as the feed-forward part that it replaces.

A feed-forward part is a pair of Linears with an activation between them, and nothing else. `upcycle` puts the experts
where the first Linear was and an identity where the activation and the second were, so that dropout, norm and residual
around them stay the model's own. Which tokens are padding, the experts take from the attention mask (`upcycled.py`).
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from kernels import validation
from kernels.activations import ACTIVATIONS
from kernels.layers import Experts
from kernels.routing import ALL
from kernels.upcycled import Linearless, Padding, UpcycledMoE, takes_mask

FFN_NAMES = (
    ("intermediate.dense", "output.dense"),  # BERT, RoBERTa, XLM-R, MPNet, DPR, ELECTRA, DeBERTa
    ("ffn.lin1", "ffn.lin2"),  # DistilBERT
    ("mlp.fc1", "mlp.fc2"),  # CLIP, SigLIP
    ("fc1", "fc2"),  # BART
    ("ffn", "ffn_output"),  # ALBERT, whose blocks are one
)
"""Where the two Linears of a feed-forward part are, relative to their block."""

OTHER_MASKS = ("FSMT", "FastSpeech2", "Mask2Former", "Mpt", "OneFormer")
"""What the classes of transformers begin with whose masks say what to leave out."""

RECIPE = "moe_upcycling"
"""The config entry that says how a saved model was upcycled."""


Model = TypeVar("Model", bound=nn.Module)


class _FeedForward(NamedTuple):
    """A feed-forward part, and the block that it belongs to."""

    name: str
    block: nn.Module
    up: nn.Module
    down: nn.Module


class _Replacement(NamedTuple):
    """What `upcycle` is going to do to one feed-forward part."""

    block: nn.Module
    moe: UpcycledMoE
    activation: tuple[nn.Module, str]
    masks: tuple[nn.Module, nn.Module | None] | None


def upcycle(
    model: Model,
    *,
    num_experts: int,
    top_k: int | str,
    layers: Sequence[int] | str | None = None,
    ffn: tuple[str, str] | None = None,
    redraw: float = 0.0,
    **moe_kwargs: Any,
) -> Model:
    """Replaces feed-forward parts by mixtures of experts, in place, without changing the model's output; returns it.

    - `layers`: which blocks, by index; "every-2" for the second, fourth, ...; None for all.
    - `ffn`: the names of the two Linears relative to their block, as in ("intermediate.dense", "output.dense").
      None: BERT, RoBERTa, XLM-R, MPNet, DPR, DistilBERT and others are found by the names that they use.
    - `redraw`: the share of each expert's inner units that are drawn anew, so that experts differ from the start; the
      model's output is then another one. Drop-Upcycling (arXiv 2502.19261) takes 0.5.
    - `moe_kwargs`: further arguments of `MoE`. The activation and the biases are the model's.

    Every expert is a copy of the feed-forward part, so the weights of the chosen experts must sum to 1: settings under
    which they do not raise. The activation must be one that the layers have. Padding is not routed. Where something
    raises, the model is as it was.

    A model of transformers is saved by `save_pretrained` and loaded by `kernels.upcycling.from_pretrained`.

    >>> import torch, kernels
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32))
    >>> _ = kernels.upcycle(model, num_experts=4, top_k=2, layers="every-2")
    >>> type(model.encoder.layer[1].intermediate.dense).__name__
    'UpcycledMoE'
    """
    check_weights_sum_to_1(num_experts, top_k, moe_kwargs.get("router", "softmax"), moe_kwargs.get("renormalize", True))
    if not 0 <= redraw <= 1:
        raise ValueError(f"redraw must be a share of the inner units, from 0 to 1; got {redraw!r}")
    ffn = _find_ffn(model) if ffn is None else ffn
    parts = list(_parts(model, ffn))
    if not parts:
        raise ValueError(f"ffn: {type(model).__name__} has no block with the Linears {ffn[0]!r} and {ffn[1]!r}")
    chosen = _choose(layers, len(parts))
    settings = {"num_experts": num_experts, "top_k": top_k, **moe_kwargs}
    for replacement in [_prepare(model, parts[index], ffn, settings) for index in chosen]:
        redraw_units(replacement.moe.experts, redraw)
        _replace(replacement)
    config = getattr(model, "config", None)
    if config is not None:
        recipe = {"layers": chosen, "ffn": list(ffn), **settings}
        setattr(config, RECIPE, [*getattr(config, RECIPE, []), recipe])
    return model


def check_weights_sum_to_1(num_experts: int, top_k: int | str, router: str, renormalize: bool) -> None:
    """Raises where experts that are copies of one feed-forward part would not compute what it does."""
    validation.check_choices(router=router)
    validation.check_positive(num_experts=num_experts)
    every_expert = validation.check_top_k(top_k, num_experts) in (ALL, num_experts)
    if not (renormalize or router == "topk_softmax" or (every_expert and router == "softmax")):
        raise ValueError(
            f"the experts' weights do not sum to 1 with router={router!r}, renormalize={renormalize}, top_k={top_k!r}, "
            "so copies of one feed-forward part would not compute what it does: renormalize must be on, or the router "
            "another one (use renormalize=True, router='topk_softmax', or the softmax router with top_k='all')"
        )


@torch.no_grad()
def copy_dense(experts: Experts, up: nn.Linear, down: nn.Linear) -> None:
    """Makes every expert a copy of up, activation, down."""
    for stack, weight in ((experts.up_weight, up.weight), (experts.down_weight, down.weight)):
        stack.copy_(weight.expand_as(stack))
    for biases, bias in ((experts.up_bias, up.bias), (experts.down_bias, down.bias)):
        if biases is not None:
            biases.zero_() if bias is None else biases.copy_(bias.expand_as(biases))


@torch.no_grad()
def redraw_units(experts: Experts, share: float) -> None:
    """Draws a share of the inner units of each expert anew, others for each: Drop-Upcycling (arXiv 2502.19261).

    A unit is its rows of `up` and its column of `down`; they come from a normal distribution with the mean and the
    deviation that all those drawn of the same expert and matrix had.
    """
    units = experts.down_weight.shape[-1]
    redrawn = round(share * units)
    if redrawn < 2:  # one has no deviation
        return
    for expert in range(len(experts.down_weight)):
        chosen = torch.randperm(units, device="cpu")[:redrawn]
        down = experts.down_weight[expert]
        down[:, chosen] = _like(down[:, chosen])
        for stack in (experts.up_weight, experts.up_bias):
            if stack is not None:
                for half in stack[expert].split(units):  # a gated activation has two
                    half[chosen] = _like(half[chosen])


def _like(part: Tensor) -> Tensor:
    return torch.randn_like(part) * part.std() + part.mean()


def _find_ffn(model: nn.Module) -> tuple[str, str]:
    for names in FFN_NAMES:
        if next(_parts(model, names), None):
            return names
    raise ValueError(
        f"no feed-forward part was found in {type(model).__name__}: pass ffn=(name of the first Linear, name of the "
        f"second), relative to a block; known are {', '.join(map(str, FFN_NAMES))}"
    )


def _parts(model: nn.Module, ffn: tuple[str, str]) -> Iterator[_FeedForward]:
    """Every feed-forward part, in the order of the model; those that are upcycled already keep their place."""
    for name, block in model.named_modules():
        try:
            up, down = block.get_submodule(ffn[0]), block.get_submodule(ffn[1])
        except AttributeError:
            continue
        if isinstance(up, UpcycledMoE) or (isinstance(up, nn.Linear) and isinstance(down, nn.Linear)):
            yield _FeedForward(name, block, up, down)


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


def _prepare(model: nn.Module, part: _FeedForward, ffn: tuple[str, str], settings: dict[str, Any]) -> _Replacement:
    """The steps, none of which changes the model:

    1. find the activation between the two Linears, and see that there is nothing else;
    2. make the experts, all of them copies;
    3. find the module that says what padding is.
    """
    up, down = part.up, part.down
    if isinstance(up, UpcycledMoE):
        raise ValueError(f"layers: {part.name} is upcycled already")
    assert isinstance(up, nn.Linear)
    assert isinstance(down, nn.Linear)
    if (up.in_features, up.out_features) != (down.out_features, down.in_features):
        raise ValueError(
            f"ffn: {part.name} maps {up.in_features} -> {up.out_features} and {down.in_features} -> "
            f"{down.out_features}: the second Linear must undo the first"
        )
    if not (up.weight.is_floating_point() and down.weight.is_floating_point()):
        raise TypeError(f"ffn: {part.name} has {up.weight.dtype} weights: upcycle before quantising")

    # 1
    holder, attribute, activation = _find_activation(part, ffn)
    own = {"activation": activation, "bias": up.bias is not None or down.bias is not None}
    for argument, value in own.items():
        if settings.get(argument, value) != value:
            raise ValueError(f"{argument}={settings[argument]!r}, but {part.name} has {argument}={value!r}")
    _check_between(part, ffn, getattr(holder, attribute))

    # 2
    moe = UpcycledMoE(up.in_features, up.out_features, **{**settings, **own})
    moe.ffn = ffn
    moe.to(up.weight.device, up.weight.dtype).train(up.training)
    copy_dense(moe.experts, up, down)

    # 3
    return _Replacement(part.block, moe, (holder, attribute), _mask_takers(model, part.name))


def _replace(replacement: _Replacement) -> None:
    block, moe, (holder, attribute), masks = replacement
    block.set_submodule(moe.ffn[0], moe)
    setattr(holder, attribute, nn.Identity())
    block.set_submodule(moe.ffn[1], Linearless())
    if masks is not None:
        moe.padding = Padding(*masks)


def _find_activation(part: _FeedForward, ffn: tuple[str, str]) -> tuple[nn.Module, str, str]:
    """-> the module that holds the activation, its attribute there, and our name for it"""
    for holder in _holders(part, ffn):
        found = {**vars(holder), **dict(holder.named_children())}
        for attribute, function in found.items():
            if "act" not in attribute or not _may_be_activation(function):
                continue
            activation = _recognise(function)
            if activation is None:
                raise ValueError(
                    f"the activation of {part.name}, {function!r}, is none of {', '.join(ACTIVATIONS)}: "
                    "the experts cannot reproduce it"
                )
            return holder, attribute, activation
    raise ValueError(
        f"no activation was found in {part.name}: the module that holds {ffn[0]!r} must have it as an attribute "
        "without parameters, whose name contains 'act'"
    )


def _holders(part: _FeedForward, ffn: tuple[str, str]) -> list[nn.Module]:
    """The modules that may have what stands between the Linears as an attribute."""
    return [part.block.get_submodule(ffn[0].rpartition(".")[0]), part.block]


def _may_be_activation(value: Any) -> bool:
    if isinstance(value, nn.Dropout):
        return False
    return not list(value.parameters()) if isinstance(value, nn.Module) else callable(value)


def _recognise(function: Callable[[Tensor], Tensor]) -> str | None:
    probe = torch.linspace(-8, 8, 1001, device="cpu")  # whatever device a model is being built on
    for name, (ours, _) in ACTIVATIONS.items():
        if torch.allclose(function(probe.clone()), ours(probe), rtol=1e-5, atol=1e-6):
            return name
    return None


def _check_between(part: _FeedForward, ffn: tuple[str, str], activation: Callable[[Tensor], Tensor]) -> None:
    """Raises where more than the activation stands between the two Linears: a gate, a norm, a dropout.

    The part is tried, in training and not. One that cannot be, because its block asks for more than hidden states, is
    taken at its word: the dropout that the classes of transformers name activation_dropout.
    """
    in_training, in_evaluation = (_between(part, ffn, training) for training in (True, False))
    if in_training is None or in_evaluation is None:
        dropout = max(_probability(getattr(holder, "activation_dropout", 0.0)) for holder in _holders(part, ffn))
        drops, differs = dropout > 0, False
    else:
        differs = not _equal(activation(in_evaluation[0]), in_evaluation[1])
        drops = not _equal(activation(in_training[0]), in_training[1])
    if differs:
        raise ValueError(
            f"ffn: in {part.name} there is more between {ffn[0]!r} and {ffn[1]!r} than the activation (a gate, as in "
            "Llama's mlp, or a norm): experts, which are two Linears and an activation, cannot reproduce it"
        )
    if drops:
        raise ValueError(
            f"ffn: {part.name} drops activations between {ffn[0]!r} and {ffn[1]!r} in training, which experts cannot: "
            "load the model without that dropout (activation_dropout=0 for BART's family, dropout_rate=0 for T5's)"
        )


def _between(part: _FeedForward, ffn: tuple[str, str], training: bool) -> tuple[Tensor, Tensor] | None:
    """-> what comes out of the first Linear and what goes into the second; None if they cannot be tried."""
    weight = part.up.weight
    if not isinstance(weight, Tensor) or weight.is_meta:
        return None
    paths = zip(*(name.split(".")[:-1] for name in ffn))
    shared = [own for own, other in takewhile(lambda pair: pair[0] == pair[1], paths)]
    out: list[Tensor] = []
    into: list[Tensor] = []
    hidden = torch.randn(1, 32, weight.shape[1], generator=torch.Generator().manual_seed(0), device="cpu")
    devices = [weight.device] if weight.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        try:
            module = copy.deepcopy(part.block.get_submodule(".".join(shared))).train(training)
            first, second = (module.get_submodule(name.removeprefix(".".join([*shared, ""]))) for name in ffn)
            # Cloned before it is changed in place.
            first.register_forward_hook(lambda module, args, result: out.append(result.clone()))
            second.register_forward_pre_hook(lambda module, args: into.append(args[0]))
            _, *others = inspect.signature(module.forward).parameters.values()
            needed = [value for value in others if value.default is value.empty and value.kind < value.VAR_POSITIONAL]
            module(hidden.to(weight), *[None] * len(needed))
        except Exception:  # of whatever kind: what the Linears have seen by then counts
            pass
    return (out[-1], into[-1]) if out and into else None


def _equal(expected: Tensor, got: Tensor) -> bool:
    return expected.shape == got.shape and bool((expected - got).norm() <= 1e-2 * expected.norm())


def _probability(dropout: Any) -> float:
    return float(getattr(dropout, "p", dropout))


def _mask_takers(model: nn.Module, block_name: str) -> tuple[nn.Module, nn.Module | None] | None:
    """The innermost module around a block whose forward takes an attention mask, and the attention in it."""
    names = block_name.split(".") if block_name else []
    for depth in range(len(names), -1, -1):
        module = model.get_submodule(".".join(names[:depth]))
        if takes_mask(module):
            if type(module).__name__.startswith(OTHER_MASKS):
                raise ValueError(f"the masks of {type(module).__name__} say what to leave out: it cannot be upcycled")
            return module, _attention(module)
    return None


def _attention(block: nn.Module) -> nn.Module | None:
    """The first module in a block that is attention by its name, and takes a mask."""
    for name, module in block.named_modules():
        if module is not block and "att" in (name + type(module).__name__).lower() and takes_mask(module):
            return module
    return None


# Names for others: as if every expert were the model's own feed-forward part.


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
    `from_pretrained` has no place for experts, and would start the feed-forward parts from nothing. The base model of a
    checkpoint with a head can be loaded, too; a pooler that the checkpoint lacks starts from nothing then.
    """
    from transformers import AutoConfig

    directory = Path(directory)
    config = AutoConfig.from_pretrained(directory)
    recipes = getattr(config, RECIPE, [])
    if not recipes:
        raise ValueError(
            f"{directory / 'config.json'} has no {RECIPE!r}: this model was not saved after kernels.upcycle"
        )
    setattr(config, RECIPE, [])
    saved_as, concrete = config.architectures or [], _concrete_class(model_class, config)

    class Upcycled(concrete):  # type: ignore[valid-type, misc]
        """What their loader builds: their renaming of tensors, prefixes and tied weights apply."""

        _keep_in_fp32_modules_strict = [*(getattr(concrete, "_keep_in_fp32_modules_strict", ()) or ()), "balance_bias"]

        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            for recipe in recipes:
                upcycle(self, **{**recipe, "ffn": tuple(recipe["ffn"])})

        def _init_weights(self, module: nn.Module) -> None:
            if not any(isinstance(child, UpcycledMoE) for child in module.children()):  # SigLIP's looks for weights
                super()._init_weights(module)

    for name in ("__name__", "__qualname__", "__module__"):  # by which the loader finds what to rename
        setattr(Upcycled, name, getattr(concrete, name))
    model, found = Upcycled.from_pretrained(directory, config=config, output_loading_info=True)
    model.__class__ = concrete
    missing, unexpected = set(found["missing_keys"]), set(found["unexpected_keys"])
    if saved_as != [concrete.__name__] and model.base_model is model:
        missing, unexpected = {name for name in missing if not name.startswith("pooler.")}, set()
    if missing or unexpected or found["mismatched_keys"]:
        raise ValueError(
            f"{directory} does not fit {concrete.__name__}: missing {sorted(missing)}, "
            f"unexpected {sorted(unexpected)}, of another shape {sorted(found['mismatched_keys'])}"
        )
    for moe in model.modules():
        if isinstance(moe, UpcycledMoE):
            moe.sums.clear(moe.router.weight)  # the loader builds without memory
    return model


def _concrete_class(model_class: Any, config: Any) -> type:
    """Of the model that an Auto class chooses."""
    if isinstance(model_class, type) and issubclass(model_class, nn.Module):
        return model_class
    with torch.device("meta"):
        return type(model_class.from_config(config))
