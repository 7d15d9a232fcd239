"""A model that is ready to use: a retriever, its tokenizer, a device and a precision; how it is made and loaded.

model = moe_retrieval.load("minilm")
model.encode_document(["Sort a sequence in place.", ""])     # normalised float32 array [2, 384]
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_retrieval import backbones, experts
from moe_retrieval.encoder import EncoderShape, pack
from moe_retrieval.errors import InputError
from moe_retrieval.retriever import MODEL_TYPE, Retriever, RetrieverSettings, new_settings, prepare_for_inference
from moe_retrieval.tokenizer import Tokenizer, load_tokenizer

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

DOC_LENGTH, QUERY_LENGTH = 256, 64
"""Tokens that are read of a text when nobody says."""


class Model:
    """Texts -> embeddings. `encode` uses no prompt; queries and documents have their own prompts and lengths."""

    def __init__(self, retriever: Retriever, tokenizer: Tokenizer, precision: str, device: torch.device):
        self.fingerprint = fingerprint(retriever)
        self.settings, self.tokenizer = retriever.settings, tokenizer
        self.precision, self.device = precision, device
        self.retriever = prepare_for_inference(retriever.to(device), PRECISIONS[precision])

    @property
    def query_prompt(self) -> str:
        return self.settings.query_prompt

    @property
    def doc_prompt(self) -> str:
        return self.settings.doc_prompt

    @property
    def query_length(self) -> int:
        return self.settings.query_length

    @property
    def doc_length(self) -> int:
        return self.settings.doc_length

    @cached_property
    def hidden_size(self) -> int:
        """The width of an embedding."""
        return self.settings.embedding_size

    def encode(self, texts: str | Sequence[str]) -> np.ndarray:
        """float32 [N, H], of length 1 unless the model's settings say otherwise; "" is a valid text."""
        return self._encode(texts, "text")

    def encode_query(self, texts: str | Sequence[str]) -> np.ndarray:
        """As `encode`, for questions: with the query prompt, cut to the query length."""
        return self._encode(texts, "query")

    def encode_document(self, texts: str | Sequence[str]) -> np.ndarray:
        """As `encode`, for what is searched: with the document prompt."""
        return self._encode(texts, "document")

    def _encode(self, texts: str | Sequence[str], kind: str) -> np.ndarray:
        from moe_retrieval.encode import encode_texts

        return encode_texts(self, [texts] if isinstance(texts, str) else texts, kind)

    def embed_tokens(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Lists of token ids -> float32 embeddings [N, H], on the model's device."""
        with torch.inference_mode(), autocast(self.device, self.precision):
            return self.retriever(*pack(sequences, self.device)).float()


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The context in which a forward computes in this precision."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, PRECISIONS[precision])


def fingerprint(retriever: Retriever) -> str:
    """16 hex digits that change with any weight or setting."""
    digest = sha256(retriever.settings.to_json().encode())
    for name, tensor in sorted(retriever.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


# Loading.


def load(path_or_alias: str | Path, precision: str = "bf16", device: str | torch.device | None = None) -> Model:
    """A run of ours, a Hugging Face model directory, an alias ("minilm"), or a repository of the hub.

    `precision` is bf16, fp16 or fp32; `device` None is the GPU if there is one.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    folder = backbones.find(str(path_or_alias))
    if is_run(folder):
        retriever = read_run(folder)
    else:
        retriever = build_retriever(str(path_or_alias), folder)
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, retriever, folder)
    return Model(retriever, tokenizer, precision, default_device(device))


def check_vocabulary(tokenizer: Tokenizer, retriever: Retriever, folder: Path) -> None:
    rows = retriever.settings.shape.vocab_size
    if tokenizer.vocab_size > rows:
        raise InputError(
            f"model {folder}: the tokenizer has {tokenizer.vocab_size} tokens and the model embeds {rows}: "
            "they are not of one model"
        )


def default_device(device: str | torch.device | None = None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def is_run(folder: Path) -> bool:
    return backbones.read_json(folder / "config.json").get("model_type") == MODEL_TYPE


def read_run(folder: Path, dropout: float = 0.0) -> Retriever:
    """The retriever that `export.save` wrote to this directory."""
    retriever = Retriever(read_settings(folder), dropout)
    try:
        retriever.load_state_dict(backbones.read_weights(folder))
    except RuntimeError as error:
        raise InputError(
            f"model {folder}: the weights do not fit config.json: {' '.join(str(error).split())}"
        ) from None
    return retriever


def read_settings(folder: Path) -> RetrieverSettings:
    config = backbones.read_json(folder / "config.json")
    try:
        return RetrieverSettings.from_dict(config["retriever"])
    except (KeyError, TypeError) as error:
        raise InputError(f"model {folder}: config.json does not describe a retriever: {error!r}") from None


# Making.


def build_retriever(
    name: str,
    folder: Path,
    variant: str = "dense",
    control_of: str | None = None,
    expert_changes: dict[str, Any] | None = None,
    dropout: float = 0.0,
    **usage: Any,
) -> Retriever:
    """A variant that starts as the backbone in `folder`; `usage` are fields of RetrieverSettings, None its own."""
    known = backbones.read_usage(folder, name)
    shape, state = backbones.read_encoder(folder)
    longest = min(known.max_length or shape.max_positions, shape.max_positions)
    defaults = {
        "pooling": known.pooling,
        "normalize": known.normalize,
        "query_prompt": known.query_prompt,
        "doc_prompt": known.doc_prompt,
        "query_length": min(QUERY_LENGTH, longest),
        "doc_length": min(DOC_LENGTH, longest),
    }
    given = {key: value for key, value in usage.items() if value is not None}
    settings = new_settings(shape, variant, control_of, expert_changes, **(defaults | given))
    if settings.family == "moe" and settings.experts is not None:
        checked = experts.check_upcycling(settings.experts, shape)
        settings = replace(settings, experts=checked if variant == "moe" else settings.experts)
    retriever = Retriever(settings, dropout)
    retriever.start_from(state)
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
    defaults = {
        "query_length": min(QUERY_LENGTH, shape.max_positions),
        "doc_length": min(DOC_LENGTH, shape.max_positions),
    }
    given = {key: value for key, value in usage.items() if value is not None}
    return Retriever(new_settings(shape, variant, control_of, expert_changes, **(defaults | given)), dropout)
