"""What encoding, indexing and evaluating need of a model."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from moe_retrieval.models.usage import Usage


class TextTokenizer(Protocol):
    def encode_and_count(self, texts: Sequence[str], max_length: int, /) -> tuple[list[list[int]], int]:
        """Ids of each text, special tokens included, at most max_length; how many texts had more."""


class Embedder(Protocol):
    """`model.Model` is one; so is whatever else has these."""

    @property
    def tokenizer(self) -> TextTokenizer: ...
    @property
    def usage(self) -> Usage: ...
    @property
    def hidden_size(self) -> int:
        """The width of an embedding."""

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes an embedding, but the usage and the precision."""

    @property
    def precision(self) -> str: ...
    @property
    def device(self) -> torch.device: ...

    def embed_tokens(self, sequences: Sequence[Sequence[int]], /) -> Tensor:
        """Lists of token ids -> float32 embeddings [N, hidden_size]."""
