"""The files of a BERT-family model, read as the shape and the state of an `encoder.Encoder`."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from moe_retrieval.errors import InputError
from moe_retrieval.files import read_object
from moe_retrieval.models import distilbert
from moe_retrieval.models.encoder import Encoder, EncoderShape
from moe_retrieval.models.undrawn import sizes_alone

HUGGING_FACE_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

BERT_LAYOUTS = ("bert", "dpr", "distilbert", "roberta", "xlm-roberta", "camembert")
"""Model types with BERT's arithmetic. The last three count positions from their padding id + 1."""

OTHERS = {"mpnet": " (its attention adds a bias by distance, which this encoder has not)"}
"""Model types that one might take for BERT's -> why they are not."""


def _first_position(config: dict[str, Any], folder: Path) -> int:
    if config.get("model_type") not in ("roberta", "xlm-roberta", "camembert"):
        return 0
    padding = config.get("pad_token_id", 1)
    if type(padding) is not int or padding < 0:
        raise InputError(f"model {folder}: config.json must have a pad_token_id that is an int, got {padding!r:.40}")
    return padding + 1


def read_shape(folder: Path) -> EncoderShape:
    """The `config.json` of a BERT-family model."""
    config = read_object(folder / "config.json")
    kind = config.get("model_type", "bert")  # TinyBERT's files do not say
    if kind not in BERT_LAYOUTS:
        why, expected = OTHERS.get(str(kind), ""), ", ".join(BERT_LAYOUTS)
        raise InputError(f"model {folder}: model_type {kind!r} is not supported{why}; expected one of {expected}")
    if kind == "distilbert":
        config = distilbert.as_bert_config(config)
    positions = config.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise InputError(f"model {folder}: position_embedding_type {positions!r} is not supported; expected 'absolute'")
    if config.get("is_decoder") or config.get("projection_dim"):
        raise InputError(f"model {folder}: a decoder, or an encoder with a projection, is not supported")
    activation = config.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in HUGGING_FACE_ACTIVATIONS:
        raise InputError(f"model {folder}: hidden_act {activation!r:.40} is not supported")
    try:
        return EncoderShape(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            ffn_size=config["intermediate_size"],
            max_positions=config["max_position_embeddings"] - _first_position(config, folder),
            activation=HUGGING_FACE_ACTIVATIONS[activation],
            norm_eps=config.get("layer_norm_eps", 1e-12),
        )
    except KeyError as error:
        raise InputError(f"model {folder}: config.json has no {error}") from None
    except InputError as error:
        raise InputError(f"model {folder}: config.json: {error}") from None
    except TypeError:
        raise InputError(f"model {folder}: config.json must have a max_position_embeddings that is an int") from None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a directory, by their names there."""
    whole, index, older = (
        folder / name for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    )
    if whole.is_file():
        return _read_tensors(whole, load_file)
    if index.is_file():
        return {k: v for shard in _shards(index) for k, v in _read_tensors(folder / shard, load_file).items()}
    if older.is_file():  # older models of the hub have nothing else
        return _read_tensors(older, partial(torch.load, map_location="cpu", weights_only=True))
    raise InputError(f"model {folder}: neither model.safetensors nor pytorch_model.bin is there")


def _read_tensors(path: Path, load: Callable[[Path], Any]) -> dict[str, Tensor]:
    try:
        tensors = load(path)
    except Exception as error:  # neither library says which classes it raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"model {path.parent}: cannot read {path.name}: {reason:.200}") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise InputError(f"model {path.parent}: {path.name} holds something other than tensors by name")
    return tensors


def _shards(index: Path) -> list[str]:
    places = read_object(index).get("weight_map")
    names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    if not names:
        raise InputError(f"model {index.parent}: {index.name} has no weight_map from tensors to files")
    for name in names:
        if Path(name).name != name:
            raise InputError(f"model {index.parent}: {index.name} names {name!r:.80}, which is not in the folder")
    return names


def check_shapes(folder: Path, made: nn.Module, state: dict[str, Tensor]) -> None:
    """Raises unless the weights are those of a module that was made, without memory, by what config.json says."""
    for name, expected in made.state_dict().items():
        found = state.get(name)
        if found is None:
            raise InputError(f"model {folder}: the weights do not fit config.json: {name} is missing")
        if found.shape != expected.shape or found.is_floating_point() != expected.is_floating_point():
            raise InputError(
                f"model {folder}: the weights do not fit config.json: {name} is {_kind(found)}, "
                f"expected {_kind(expected)}"
            )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def read_encoder(folder: Path) -> tuple[EncoderShape, dict[str, Tensor]]:
    """-> the shape and the state of an `encoder.Encoder`, in fp32."""
    shape, config = read_shape(folder), read_object(folder / "config.json")
    offset, is_distilled = _first_position(config, folder), config.get("model_type") == "distilbert"
    modern = distilbert.as_bert_name if is_distilled else _modern_name
    theirs = {modern(name): tensor for name, tensor in read_weights(folder).items()}
    anchor = "embeddings.word_embeddings.weight"
    prefix = next((name.removesuffix(anchor) for name in theirs if name.endswith(anchor)), None)
    if prefix is None:
        raise InputError(f"model {folder}: no tensor is called ...{anchor}")
    state = {}
    for ours, names in _bert_names(shape.num_layers, token_types=not is_distilled):
        missing = [name for name in names if prefix + name not in theirs]
        if missing:
            raise InputError(f"model {folder}: the tensor {prefix}{missing[0]} is missing")
        tensors = [theirs[prefix + name] for name in names]
        try:
            if ours == "positions.weight":  # every token has type 0, so its row is part of the position
                state[ours] = tensors[0][offset:].float() + sum(types[0].float() for types in tensors[1:])
            else:  # q, k and v are one linear map here
                state[ours] = torch.cat(tensors)
        except (IndexError, RuntimeError):
            shapes = ", ".join(_kind(tensor) for tensor in tensors)
            raise InputError(f"model {folder}: {prefix}{names[0]} and what belongs to it are {shapes}") from None
    with sizes_alone():
        check_shapes(folder, Encoder(shape), state)
    return shape, {name: tensor.float() for name, tensor in state.items()}


def _modern_name(name: str) -> str:
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _bert_names(num_layers: int, token_types: bool = True) -> Iterator[tuple[str, list[str]]]:
    """(our tensor, BERT's tensors that make it)"""
    yield "tokens.weight", ["embeddings.word_embeddings.weight"]
    types = ["embeddings.token_type_embeddings.weight"] if token_types else []
    yield "positions.weight", ["embeddings.position_embeddings.weight", *types]
    yield from _linear_names({"norm": ["embeddings.LayerNorm"]})
    for i in range(num_layers):
        theirs = f"encoder.layer.{i}"
        modules = {
            f"blocks.{i}.qkv": [f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")],
            f"blocks.{i}.out": [f"{theirs}.attention.output.dense"],
            f"blocks.{i}.attention_norm": [f"{theirs}.attention.output.LayerNorm"],
            f"blocks.{i}.ffn.up": [f"{theirs}.intermediate.dense"],
            f"blocks.{i}.ffn.down": [f"{theirs}.output.dense"],
            f"blocks.{i}.ffn_norm": [f"{theirs}.output.LayerNorm"],
        }
        yield from _linear_names(modules)


def _linear_names(modules: dict[str, list[str]]) -> Iterator[tuple[str, list[str]]]:
    for ours, names in modules.items():
        for kind in ("weight", "bias"):
            yield f"{ours}.{kind}", [f"{name}.{kind}" for name in names]
