"""What the training of a reranker can be told: a dataclass of flags, which a run also saves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe_retrieval.bounds import check_flags
from moe_retrieval.errors import InputError
from moe_retrieval.models.typed import MOST

LEAST_OF = {
    "group_size": 2, "batch_size": 1, "chunk_size": 0, "epochs": 1, "max_steps": 1, "max_length": 1, "lora_rank": 0,
    "lora_alpha": 1, "lr": 0, "weight_decay": 0, "clip": 0, "warmup": 0, "save_every": 0, "seed": 0,
}  # fmt: skip
MOST_OF = {"seed": 2**32 - 1}


@dataclass
class TrainRerankerConfig:
    """Trains a causal language model to say Yes to a passage that answers a question, and leaves a directory that the
    command rerank takes.

    Each question comes with one passage that answers it and others that do not: cross-entropy over their scores. The
    same command again goes on where a run was stopped.
    """

    model: str
    """A causal language model of transformers: a directory, or a repository of the hub."""
    data: str
    """JSON lines that the command prepare left, also .gz."""
    output_dir: str
    """Where the reranker goes; checkpoints lie below it."""
    group_size: int = 16
    """Passages a question: one that answers it, and others, which come again where there are too few."""
    against_no: bool = False
    """The score is the logit of Yes less that of No, and not that of Yes alone."""
    max_length: int = 512
    """Tokens read of question, passage and prompt together."""
    lora_rank: int = 0
    """Rank of the matrices that LoRA adds (32 in the paper's settings; needs peft); 0 trains the whole model."""
    lora_alpha: int | None = None
    """What LoRA's matrices are multiplied by, times their rank; None is twice the rank."""
    epochs: int | None = None
    """Times that the questions are gone through; None is 1, or as many as max_steps needs."""
    max_steps: int | None = None
    """Where training ends; None is what the epochs have."""
    batch_size: int = 16
    """Questions a step."""
    chunk_size: int = 1
    """Questions that are computed at a time; 0 is all at once."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass, which saves memory."""
    lr: float = 2e-4
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Of everything but biases and norms."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 is no limit."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warmup, to 0 at the last step."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """The type that is computed in, weights stay fp32; auto is bf16 where that is faster, else fp32."""
    save_every: int = 100
    """Steps between checkpoints; 0 is at the end alone."""
    seed: int = 0
    """Of all that is random: which passages come, in which order, dropout."""
    resume: str = "auto"
    """auto: from the newest checkpoint of output_dir, if any; never; or the path of a checkpoint."""

    def __post_init__(self) -> None:
        check_flags(self, LEAST_OF, MOST_OF, MOST)
        if self.warmup > 1:
            raise InputError(f"--warmup is a share of the steps, 0 to 1, got {self.warmup}")
        if Path(self.model).resolve() == Path(self.output_dir).resolve():
            raise InputError(f"--model {self.model} would be overwritten: give another --output-dir")
        if self.lora_alpha is not None and not self.lora_rank:
            raise InputError("--lora-alpha goes with --lora-rank, which is 0")
