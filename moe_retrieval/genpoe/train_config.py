"""What the training of a hypernetwork can be told: a dataclass of flags, which a run also saves, and named settings."""

import re
from dataclasses import dataclass
from typing import Literal

from moe_retrieval.cli import fixed
from moe_retrieval.errors import InputError
from moe_retrieval.training.flags import TrainingFlags

LEAST_OF = {"rank": 1, "bottleneck": 1, "passages": 1, "in_prompt": 0, "passage_length": 1}


@dataclass(kw_only=True)
class TrainConfig(TrainingFlags):
    """Trains a hypernetwork that makes experts of passages, for a language model that stays as it is, and leaves a
    directory that the command answer takes.

    Cross-entropy on the tokens of the answer alone; a question has one of its answers in each epoch. The same command
    again goes on where a run was stopped.
    """

    model: str
    """The language model (Llama, Qwen, GPT-2, T5): a directory, or a repository of the hub."""
    data: str
    """Questions with answers and passages, as the commands retrieve and rerank write them, or DPR's training data."""
    layers: str | None = None
    """Layers whose feed-forward parts get experts beside them, counted from 0, like 11 or 9,11; None is the one a third
    of the way up."""
    rank: int = 64
    """Rank of an expert's four factors."""
    bottleneck: int = 128
    """Width of the hypernetwork between what it reads and what it writes."""
    passages: int = 1
    """Passages of a question that become experts, at most: the best ranked ones; or, where the data has no ranking, one
    that answers it and others that do not."""
    fewer: bool = False
    """Each question comes with 1 to --passages of them, as drawn anew in each epoch."""
    in_prompt: int = 0
    """As many of these passages are in the prompt too."""
    passage_length: int = 256
    """Tokens that are read of a passage."""
    titles: bool = False
    """A passage's title is read before its text."""
    lr: float = 1e-4
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """How the learning rate falls after the warmup, to 0 at the last step."""
    warmup: float = 0.03
    """Share of the steps in which the learning rate rises."""
    chunk_size: int = 0
    """Questions that are computed at a time; 0 is all at once."""

    def __post_init__(self) -> None:
        self.check(LEAST_OF)
        if self.layers is not None:
            parse_layers(self.layers)
        if self.in_prompt > self.passages:
            raise InputError(f"--in-prompt must be at most --passages, which is {self.passages}, got {self.in_prompt}")


def parse_layers(text: str) -> tuple[int, ...]:
    """
    >>> parse_layers("11"), parse_layers("3, 1")
    ((11,), (1, 3))
    """
    if not re.fullmatch(r"\s*\d{1,4}\s*(,\s*\d{1,4}\s*)*", text):
        raise InputError(f"--layers must be numbers like 11 or 9,11, got {text!r:.40}")
    layers = sorted(int(part) for part in text.split(","))
    if len(set(layers)) < len(layers):
        raise InputError(f"--layers must name no layer twice, got {text!r:.40}")
    return tuple(layers)


PRESETS = fixed({
    "paper": {
        "model": "meta-llama/Llama-2-7b-hf", "layers": "11", "rank": 512, "bottleneck": 128, "passages": 5,
        "titles": True, "lr": 1e-4, "schedule": "cosine", "precision": "bf16", "gradient_checkpointing": True,
        "chunk_size": 1,
    },
    "gpu": {
        "rank": 128, "bottleneck": 512, "epochs": 20, "batch_size": 128, "lr": 1e-3, "schedule": "cosine",
        "weight_decay": 0.0, "precision": "bf16", "save_every": 500,
    },
})  # fmt: skip
"""paper: "GenPoE: Generative Passage-level Mixture of Experts for Knowledge Enhancement of LLMs" (Findings of EMNLP
2025) with Llama-2-7B. gpu: the experiment without a network, longer than two cores bear."""
