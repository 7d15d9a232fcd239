"""The files of a BERT-family model, read as the shape and the state of an `encoder.Encoder`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from moe_retrieval.errors import InputError
from moe_retrieval.files import read_json
from moe_retrieval.models.encoder import EncoderShape

HUGGING_FACE_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

BERT_LAYOUTS = ("bert", "dpr", "roberta", "xlm-roberta", "camembert")
"""Model types with BERT's tensors and arithmetic. The last three count positions from their padding id + 1."""


def _first_position(config: dict[str, Any]) -> int:
    offset_types = ("roberta", "xlm-roberta", "camembert")
    return int(config.get("pad_token_id", 1)) + 1 if config.get("model_type") in offset_types else 0


def read_shape(folder: Path) -> EncoderShape:
    """The `config.json` of a BERT-family model."""
    config = read_json(folder / "config.json")
    kind = config.get("model_type", "bert")  # TinyBERT's files do not say
    if kind not in BERT_LAYOUTS:
        raise InputError(
            f"model {folder}: model_type {kind!r} is not supported; expected one of {', '.join(BERT_LAYOUTS)}"
        )
    positions = config.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise InputError(f"model {folder}: position_embedding_type {positions!r} is not supported; expected 'absolute'")
    if config.get("is_decoder") or config.get("projection_dim"):
        raise InputError(f"model {folder}: a decoder, or an encoder with a projection, is not supported")
    activation = config.get("hidden_act", "gelu")
    if activation not in HUGGING_FACE_ACTIVATIONS:
        raise InputError(f"model {folder}: hidden_act {activation!r} is not supported")
    try:
        return EncoderShape(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            ffn_size=config["intermediate_size"],
            max_positions=config["max_position_embeddings"] - _first_position(config),
            activation=HUGGING_FACE_ACTIVATIONS[activation],
            norm_eps=config.get("layer_norm_eps", 1e-12),
        )
    except KeyError as error:
        raise InputError(f"model {folder}: config.json has no {error}") from None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a directory, by their names there."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return load_file(folder / "model.safetensors")
    if index.is_file():
        shards = sorted(set(read_json(index)["weight_map"].values()))
        for shard in shards:
            if Path(shard).name != shard or not (folder / shard).is_file():
                raise InputError(f"model {folder}: {index.name} names {shard!r}, which is no file of this folder")
        return {name: tensor for shard in shards for name, tensor in load_file(folder / shard).items()}
    if (folder / "pytorch_model.bin").is_file():  # older models of the hub have nothing else
        return torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    raise InputError(f"model {folder}: neither model.safetensors nor pytorch_model.bin is there")


def read_encoder(folder: Path) -> tuple[EncoderShape, dict[str, Tensor]]:
    """-> the shape and the state of an `encoder.Encoder`, in fp32."""
    shape = read_shape(folder)
    offset = _first_position(read_json(folder / "config.json"))
    theirs = {_modern_name(name): tensor for name, tensor in read_weights(folder).items()}
    anchor = "embeddings.word_embeddings.weight"
    prefix = next((name.removesuffix(anchor) for name in theirs if name.endswith(anchor)), None)
    if prefix is None:
        raise InputError(f"model {folder}: no tensor is called ...{anchor}")
    state = {}
    for ours, names in _bert_names(shape.num_layers):
        missing = [name for name in names if prefix + name not in theirs]
        if missing:
            raise InputError(f"model {folder}: the tensor {prefix}{missing[0]} is missing")
        tensors = [theirs[prefix + name].float() for name in names]
        if ours == "positions.weight":  # every token has type 0, so its row is part of the position
            state[ours] = tensors[0][offset:] + tensors[1][0]
        else:  # q, k and v are one linear map here
            state[ours] = torch.cat(tensors)
    return shape, state


def _modern_name(name: str) -> str:
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _bert_names(num_layers: int) -> Iterator[tuple[str, list[str]]]:
    """(our tensor, BERT's tensors that make it)"""
    yield "tokens.weight", ["embeddings.word_embeddings.weight"]
    yield "positions.weight", ["embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"]
    modules = {"norm": ["embeddings.LayerNorm"]}
    for i in range(num_layers):
        theirs = f"encoder.layer.{i}"
        modules |= {
            f"blocks.{i}.qkv": [f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")],
            f"blocks.{i}.out": [f"{theirs}.attention.output.dense"],
            f"blocks.{i}.attention_norm": [f"{theirs}.attention.output.LayerNorm"],
            f"blocks.{i}.ffn.up": [f"{theirs}.intermediate.dense"],
            f"blocks.{i}.ffn.down": [f"{theirs}.output.dense"],
            f"blocks.{i}.ffn_norm": [f"{theirs}.output.LayerNorm"],
        }
    for ours, names in modules.items():
        for kind in ("weight", "bias"):
            yield f"{ours}.{kind}", [f"{name}.{kind}" for name in names]
