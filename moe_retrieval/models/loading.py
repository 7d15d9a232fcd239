"""Retrievers: read from a run of ours, made of a backbone, or made from nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from moe_retrieval.errors import InputError
from moe_retrieval.files import read_object
from moe_retrieval.models import backbones, variants
from moe_retrieval.models.backbone_usage import read_usage
from moe_retrieval.models.bert import check_shapes, read_encoder, read_weights
from moe_retrieval.models.encoder import EncoderShape
from moe_retrieval.models.retriever import MODEL_TYPE, Retriever, RetrieverSettings, new_settings, without_weights
from moe_retrieval.models.tokenizer import Tokenizer
from moe_retrieval.models.undrawn import sizes_alone
from moe_retrieval.models.usage import Usage
from moe_retrieval.models.variants import check_upcycling


def is_run(folder: Path) -> bool:
    return read_object(folder / "config.json").get("model_type") == MODEL_TYPE


def read_run(folder: Path) -> Retriever:
    """The retriever that `export.save` wrote to this directory."""
    settings, state = read_settings(folder), read_weights(folder)
    blocks = {name.split(".")[2] for name in state if name.startswith("encoder.blocks.")}
    if len(blocks) != settings.shape.num_layers:
        expected = settings.shape.num_layers
        raise InputError(f"model {folder}: {expected} blocks by config.json, {len(blocks)} in the weights")
    try:
        with sizes_alone():
            check_shapes(folder, without_weights(settings), state)
        retriever = without_weights(settings)
        retriever.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"model {folder}: the weights do not fit config.json: {reason:.200}") from None
    return retriever


def read_settings(folder: Path) -> RetrieverSettings:
    config = read_object(folder / "config.json")
    try:
        return RetrieverSettings.from_dict(config["retriever"])
    except InputError as error:
        raise InputError(f"model {folder}: config.json: {error}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"model {folder}: config.json does not describe a retriever: {error!r:.200}") from None


def build_retriever(
    name: str,
    folder: Path,
    variant: str = "dense",
    control_of: str | None = None,
    expert_changes: dict[str, Any] | None = None,
    dropout: float = 0.0,
    redraw: float = 0.0,
    **usage: Any,
) -> Retriever:
    """A variant that starts as the backbone in `folder`; `usage` are fields of Usage, None the backbone's own.

    A run is a backbone too: a dense one for any variant, another one for its own. Of experts in the encoder, `redraw`
    is the share of the inner units that are no copies of the backbone's.
    """
    if is_run(folder) and read_settings(folder).variant != "dense":
        if redraw:
            raise InputError(f"--model {name} is a run with experts of its own: expected no --drop-upcycling")
        if backbones.split_blocks(name)[1]:
            raise InputError(f"--model {name}: expected a dense encoder to cut, got a run with experts")
        return continue_run(name, folder, variant, control_of, expert_changes, dropout, **usage)
    own, shape, state = _read_dense(name, folder)
    used = own.at_most(shape.max_positions).changed(**usage)
    settings = new_settings(shape, variant, control_of, expert_changes, used)
    if settings.family == "moe" and settings.experts is not None:
        checked = check_upcycling(settings.experts, shape)
        settings = replace(settings, experts=checked if variant == "moe" else settings.experts)
    retriever = without_weights(settings, dropout) if variant == "dense" else Retriever(settings, dropout)
    retriever.start_from(state)
    if redraw:
        for block in retriever.encoder.blocks:
            variants.redraw(block.ffn, redraw)
    return retriever


def _read_dense(name: str, folder: Path) -> tuple[Usage, EncoderShape, dict[str, Tensor]]:
    """How an encoder without experts is used, its shape and its state: of others, or of a dense run of ours."""
    whole, blocks = backbones.split_blocks(name)
    if is_run(folder):
        run = read_run(folder)
        return run.settings.usage, *_first(blocks, whole, run.settings.shape, run.encoder.state_dict())
    return read_usage(folder, whole), *_first(blocks, whole, *read_encoder(folder))


def _first(
    blocks: int | None, name: str, shape: EncoderShape, state: dict[str, Tensor]
) -> tuple[EncoderShape, dict[str, Tensor]]:
    """An encoder up to its so many-th block."""
    if blocks is None:
        return shape, state
    if blocks > shape.num_layers:
        raise InputError(f"model {name}:{blocks}: {name} has {shape.num_layers} blocks")
    left_out = tuple(f"blocks.{index}." for index in range(blocks, shape.num_layers))
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(left_out)}
    return replace(shape, num_layers=blocks), kept


COEFFICIENTS = ("balance_coef", "z_coef")
"""Of a run's experts, what a second stage may change: the rest is in their weights."""


def continue_run(
    name: str,
    folder: Path,
    variant: str,
    control_of: str | None = None,
    expert_changes: dict[str, Any] | None = None,
    dropout: float = 0.0,
    **usage: Any,
) -> Retriever:
    """A retriever that starts as a run of the same variant."""
    before = read_run(folder)
    own = before.settings
    used = own.usage.changed(**usage)
    wanted = new_settings(own.shape, variant, control_of, expert_changes, used)
    if (wanted.variant, wanted.family) != (own.variant, own.family):
        expected = f"--variant {own.variant}" + ("" if own.variant == own.family else f" --control-of {own.family}")
        raise InputError(f"--model {name} is a run whose experts stay where they are: expected {expected}")
    assert wanted.experts
    assert own.experts
    given = {key: getattr(wanted.experts, key) for key in expert_changes or {}}
    other = [key for key, value in given.items() if key not in COEFFICIENTS and value != getattr(own.experts, key)]
    if other:
        raise InputError(f"--model {name} is a run with experts of its own: {', '.join(other)} cannot be changed")
    retriever = without_weights(replace(own, usage=used, experts=replace(own.experts, **given)), dropout)
    try:
        retriever.load_state_dict(before.state_dict())
    except RuntimeError as error:
        raise InputError(f"--model {name} cannot be used so: {' '.join(str(error).split())}") from None
    return retriever


def build_from_scratch(
    shape: EncoderShape,
    variant: str = "dense",
    control_of: str | None = None,
    expert_changes: dict[str, Any] | None = None,
    dropout: float = 0.0,
    **usage: Any,
) -> Retriever:
    """A variant with random weights."""
    used = Usage().at_most(shape.max_positions).changed(**usage)
    return Retriever(new_settings(shape, variant, control_of, expert_changes, used), dropout)


def check_vocabulary(tokenizer: Tokenizer, retriever: Retriever, folder: Path) -> None:
    rows = retriever.settings.shape.vocab_size
    if tokenizer.vocab_size > rows:
        raise InputError(
            f"model {folder}: the tokenizer has {tokenizer.vocab_size} tokens and the model embeds {rows}: "
            "they are not of one model"
        )
