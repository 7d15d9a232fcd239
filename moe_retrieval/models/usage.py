"""How a model is used: what becomes of its hidden states, and how texts are given to it."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from moe_retrieval.errors import InputError
from moe_retrieval.models.pooling import POOLINGS
from moe_retrieval.models.typed import check_types

Kind = Literal["text", "query", "document"]


@dataclass(frozen=True)
class Usage:
    """Used otherwise than it was trained, a model scores wrong."""

    pooling: str = "mean"
    normalize: bool = True
    query_prompt: str = ""
    doc_prompt: str = ""
    query_length: int = 512
    """Tokens that are read of a query: no fewer than an encoder has places for, so that none is cut unasked."""
    doc_length: int = 256

    def __post_init__(self) -> None:
        check_types(self, "usage")
        if self.pooling not in POOLINGS:
            raise InputError(f"pooling must be one of {', '.join(POOLINGS)}; got {self.pooling!r}")

    def changed(self, **changes: Any) -> "Usage":
        """With other values of these fields; None changes nothing."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def at_most(self, length: int) -> "Usage":
        """No text is read further than this."""
        return replace(self, query_length=min(self.query_length, length), doc_length=min(self.doc_length, length))

    def check_lengths(self, longest: int) -> None:
        for name in ("query_length", "doc_length"):
            length = getattr(self, name)
            if not 3 <= length <= longest:
                raise InputError(f"{name} must be 3 to {longest} (the encoder's positions), got {length}")

    def prompt(self, kind: Kind) -> str:
        return {"text": "", "query": self.query_prompt, "document": self.doc_prompt}[kind]

    def length(self, kind: Kind) -> int:
        return self.query_length if kind == "query" else self.doc_length


READING = ("query_prompt", "doc_prompt", "query_length", "doc_length")
"""The fields that a model in use can change: the others are part of the network."""


def reading(holder: Any) -> dict[str, Any]:
    """These fields of a Usage, or of a command's flags."""
    return {name: getattr(holder, name) for name in READING}
