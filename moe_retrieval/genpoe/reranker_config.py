"""What the training of a reranker can be told: a dataclass of flags, which a run also saves."""

from dataclasses import dataclass
from pathlib import Path

from moe_retrieval.errors import InputError
from moe_retrieval.training.flags import TrainingFlags

LEAST_OF = {"group_size": 2, "max_length": 1, "lora_rank": 0, "lora_alpha": 1}


@dataclass(kw_only=True)
class TrainRerankerConfig(TrainingFlags):
    """Trains a causal language model to say Yes to a passage that answers a question, and leaves a directory that the
    command rerank takes.

    Each question comes with one passage that answers it and others that do not: cross-entropy over their scores. The
    same command again goes on where a run was stopped.
    """

    model: str
    """A causal language model of transformers: a directory, or a repository of the hub."""
    data: str
    """JSON lines that the command prepare left, also .gz."""
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

    def __post_init__(self) -> None:
        self.check(LEAST_OF)
        if Path(self.model).resolve() == Path(self.output_dir).resolve():
            raise InputError(f"--model {self.model} would be overwritten: give another --output-dir")
        if self.lora_alpha is not None and not self.lora_rank:
            raise InputError("--lora-alpha goes with --lora-rank, which is 0")
