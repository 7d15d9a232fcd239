"""What every training by `example_steps` can be told: how long it learns, how fast, and what it computes in."""

from dataclasses import dataclass
from typing import Literal

from moe_retrieval.bounds import check_flags
from moe_retrieval.errors import InputError
from moe_retrieval.models.typed import MOST

LEAST_OF = {
    "batch_size": 1, "chunk_size": 0, "epochs": 1, "max_steps": 1, "lr": 0, "weight_decay": 0, "clip": 0, "warmup": 0,
    "save_every": 0, "seed": 0,
}  # fmt: skip
MOST_OF = {"seed": 2**32 - 1}


@dataclass(kw_only=True)
class TrainingFlags:
    output_dir: str
    """Where what was learned goes; checkpoints lie below it."""
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
    """The type that is computed in, what learns stays fp32; auto is bf16 where that is faster, else fp32."""
    save_every: int = 100
    """Steps between checkpoints; 0 is at the end alone."""
    seed: int = 0
    """Of all that is random: which passages come, in which order, dropout."""
    resume: str = "auto"
    """auto: from the newest checkpoint of output_dir, if any; never; or the path of a checkpoint."""

    def check(self, least: dict[str, int]) -> None:
        """`least` are the bounds of flags besides these."""
        check_flags(self, LEAST_OF | least, MOST_OF, MOST)
        if self.warmup > 1:
            raise InputError(f"--warmup is a share of the steps, 0 to 1, got {self.warmup}")


def count_steps(flags: TrainingFlags, batches_an_epoch: int) -> int:
    """The steps of the epochs, at most `max_steps`."""
    if flags.epochs is None and flags.max_steps is not None:
        return flags.max_steps
    return min((flags.epochs or 1) * batches_an_epoch, flags.max_steps or MOST)
