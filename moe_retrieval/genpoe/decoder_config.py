"""What the training of a small decoder can be told: a dataclass of flags, which a run also saves."""

from dataclasses import dataclass
from typing import Literal

from moe_retrieval.errors import InputError
from moe_retrieval.training.flags import TrainingFlags

LEAST_OF = {
    "hidden_size": 1, "layers": 1, "heads": 1, "vocab_size": 300, "positions": 1, "other_weight": 0
}  # fmt: skip


@dataclass(kw_only=True)
class TrainDecoderConfig(TrainingFlags):
    """Trains a small Llama and its tokenizer from nothing, to answer questions about a passage that is before it, and
    leaves a directory of transformers. The same command again goes on where a run was stopped."""

    data: str
    """JSON lines {"text"} that end with an answer after "Answer:", as the command facts writes them."""
    hidden_size: int = 128
    """Width of the residual stream."""
    layers: int = 3
    """Blocks."""
    heads: int = 4
    """Of attention, in each block."""
    vocab_size: int = 1500
    """Tokens of the tokenizer at most: byte-level BPE of the same texts."""
    positions: int = 1024
    """Tokens that the model reads at most."""
    other_weight: float = 0.03
    """How much a token before the answer counts in the loss, where one of the answer counts 1. With all alike, answers
    are a small part of what there is to learn, and reading comes late."""
    batch_size: int = 32
    """Texts a step."""
    chunk_size: int = 0
    """Texts that are computed at a time; 0 is all at once."""
    lr: float = 2e-3
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warmup, to 0 at the last step."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""

    def __post_init__(self) -> None:
        self.check(LEAST_OF)
        if self.hidden_size % (2 * self.heads):
            raise InputError(
                f"--hidden-size must be a multiple of twice --heads, {2 * self.heads}, got {self.hidden_size}"
            )
