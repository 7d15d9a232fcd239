"""A model that is ready to use: a retriever, its tokenizer, a device and a precision.

model = moe_retrieval.load("minilm")
model.encode_document(["Sort a sequence in place.", ""])     # normalised float32 array [2, 384]
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast, get_args

import numpy as np
import torch
from torch import Tensor

from moe_retrieval.errors import InputError
from moe_retrieval.models import backbones
from moe_retrieval.models.encoder import pack
from moe_retrieval.models.loading import build_retriever, check_vocabulary, is_run, read_run
from moe_retrieval.models.precision import PRECISIONS, autocast, resolve
from moe_retrieval.models.retriever import Retriever, prepare_for_inference
from moe_retrieval.models.tokenizer import Tokenizer, load_tokenizer
from moe_retrieval.models.usage import READING, Kind, Usage
from moe_retrieval.retrieval.encode import MAX_TOKENS, encode_texts


class EncodeOptions(TypedDict, total=False):
    """What sentence-transformers takes too, and means the same by."""

    batch_size: int
    """As much memory as so many texts of full length take; short texts share it, so that more go together."""
    show_progress_bar: bool
    normalize_embeddings: bool
    """Length 1 also where the model's settings say otherwise."""
    convert_to_tensor: bool
    """A tensor on the model's device, not an array."""


class Model:
    """Texts -> embeddings. `encode` uses no prompt; queries and documents have their own prompts and lengths."""

    def __init__(self, retriever: Retriever, tokenizer: Tokenizer, precision: str, device: torch.device):
        self.fingerprint = fingerprint(retriever)
        self.settings, self.tokenizer = retriever.settings, tokenizer
        self.precision, self.device = precision, device
        self.retriever = prepare_for_inference(retriever.to(device), PRECISIONS[precision])

    @property
    def usage(self) -> Usage:
        return self.settings.usage

    def with_usage(self, **changes: Any) -> "Model":
        """The same weights with other prompts or lengths (fields of Usage); None changes nothing."""
        if unknown := set(changes) - set(READING):
            raise ValueError(f"with_usage takes {', '.join(READING)}; got {', '.join(sorted(unknown))}")
        model = copy(self)
        model.settings = replace(self.settings, usage=self.usage.changed(**changes))
        return model

    @cached_property
    def hidden_size(self) -> int:
        """The width of an embedding."""
        return self.settings.embedding_size

    def encode(
        self, texts: str | Sequence[str], *, prompt_name: str | None = None, **options: Unpack[EncodeOptions]
    ) -> Any:
        """float32 [N, H], of length 1 unless the model's settings say otherwise; "" is a valid text.

        `prompt_name` "query" or "document" is `encode_query` or `encode_document`; options are `EncodeOptions`.
        """
        if prompt_name is not None and prompt_name not in get_args(Kind)[1:]:
            raise ValueError(f"prompt_name must be query, document or None; got {prompt_name!r}")
        return self._encode(texts, cast(Kind, prompt_name or "text"), **options)

    def encode_query(self, texts: str | Sequence[str], **options: Unpack[EncodeOptions]) -> Any:
        """As `encode`, for questions: with the query prompt, cut to the query length."""
        return self._encode(texts, "query", **options)

    def encode_document(self, texts: str | Sequence[str], **options: Unpack[EncodeOptions]) -> Any:
        """As `encode`, for what is searched: with the document prompt."""
        return self._encode(texts, "document", **options)

    def _encode(
        self,
        texts: str | Sequence[str],
        kind: Kind,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        normalize_embeddings: bool = False,
        convert_to_tensor: bool = False,
    ) -> np.ndarray | Tensor:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        embeddings_NH = encode_texts(
            self,
            [texts] if isinstance(texts, str) else texts,
            kind,
            max_tokens=MAX_TOKENS if batch_size is None else batch_size * self.usage.length(kind),
            progress="texts" if show_progress_bar else None,
        )
        if normalize_embeddings and not self.usage.normalize:
            embeddings_NH = embeddings_NH / np.maximum(np.linalg.norm(embeddings_NH, axis=1, keepdims=True), 1e-12)
        return torch.from_numpy(embeddings_NH).to(self.device) if convert_to_tensor else embeddings_NH

    def embed_tokens(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Lists of token ids -> float32 embeddings [N, H], on the model's device."""
        with torch.inference_mode(), autocast(self.device, self.precision):
            return self.retriever(*pack(sequences, self.device)).float()


def fingerprint(retriever: Retriever) -> str:
    """16 hex digits that change with any weight or setting."""
    digest = sha256(retriever.settings.to_json().encode())
    for name, tensor in sorted(retriever.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def load(path_or_alias: str | Path, precision: str = "auto", device: str | torch.device | None = None) -> Model:
    """A run of ours, a Hugging Face model directory, an alias ("minilm"), or a repository of the hub; with :3 behind
    any of these, the first 3 blocks of that dense encoder.

    `precision` is bf16, fp16, fp32, or auto: bf16 where it is faster, else fp32. `device` None is the GPU if there is
    one.
    """
    place = _device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    precision = resolve(precision, place)
    _, blocks = backbones.split_blocks(str(path_or_alias))
    folder = backbones.find(str(path_or_alias))
    if is_run(folder) and blocks is None:
        retriever = read_run(folder)
    else:
        retriever = build_retriever(str(path_or_alias), folder)
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, retriever, folder)
    return Model(retriever, tokenizer, precision, place)


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError):  # what torch raises depends on how it was built
        raise InputError(f"device {str(name)!r} is not available here; cpu always is") from None
    return device
