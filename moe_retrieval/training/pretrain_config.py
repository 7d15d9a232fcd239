"""What pre-training can be told: a dataclass of flags, which a run also saves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe_retrieval.config import SCRATCH
from moe_retrieval.dataset_names import split_names
from moe_retrieval.errors import InputError
from moe_retrieval.training.flags import TrainingFlags

LEAST_OF = {
    "hidden": 1, "num_layers": 1, "heads": 1, "ff": 1, "vocab_size": 300, "max_positions": 3, "length": 3, "dropout": 0,
    "mask_share": 0,
}  # fmt: skip


@dataclass(kw_only=True)
class PretrainConfig(TrainingFlags):
    """Pre-trains an encoder to guess hidden words of a corpus, and leaves a directory that `train` takes as --model.

    The same command again goes on where a run was stopped.
    """

    # Data
    corpus: str = "docs"
    """What is read: JSON lines {"_id", "title", "text"}, also .gz; or the documents of a data set (docs, a name of
    BEIR, a folder). Several with commas between."""
    data_dir: str | None = None
    """Where data sets lie by name, besides $MOE_RETRIEVAL_DATA."""
    length: int = 128
    """Tokens read of a text."""
    mask_share: float = 0.15
    """The share of a text's tokens that are to be guessed: 8 of 10 are hidden, one is another token, one stays."""

    # Model
    model: str = SCRATCH
    """scratch (random weights), or a dense encoder that is to read this corpus: an alias (minilm), a directory, a
    repository of the hub, an earlier run."""
    hidden: int = 256
    """--model scratch: hidden size."""
    num_layers: int = 4
    """--model scratch: blocks of the encoder."""
    heads: int = 4
    """--model scratch: attention heads."""
    ff: int = 1024
    """--model scratch: width of the feed-forward part."""
    vocab_size: int = 8192
    """--model scratch: size of the vocabulary that is trained on the corpus."""
    tokenizer: Literal["wordpiece", "bpe"] = "wordpiece"
    """--model scratch: BERT's WordPiece, in lower case, or byte-level BPE, to which no text is unknown."""
    max_positions: int = 512
    """--model scratch: most tokens of a text."""
    dropout: float = 0.1
    """In the encoder, in training."""

    # Training
    output_dir: str = "runs/pretrained"
    """The encoder; checkpoints lie below it."""
    epochs: int | None = None
    """Times that the texts are gone through; None is 1, or as many as max_steps needs."""
    batch_size: int = 64
    """Texts a step, over all processes."""
    chunk_size: int = 0
    """Texts that a process computes at a time; 0 is all at once."""
    lr: float = 1e-3
    """Peak learning rate: of random weights; 5e-5 suits an encoder that others trained."""
    seed: int = 0
    """Of all that is random: new weights, the order of the texts, what is hidden of them, dropout."""

    def __post_init__(self) -> None:
        self.check(LEAST_OF)
        if not 0 < self.mask_share < 1:
            raise InputError(f"--mask-share is a share of the tokens, above 0 and below 1, got {self.mask_share}")
        if self.model == SCRATCH and self.length > self.max_positions:
            raise InputError(f"--length must be at most --max-positions, {self.max_positions}, got {self.length}")
        if self.model != SCRATCH and Path(self.model).resolve() == Path(self.output_dir).resolve():
            raise InputError(f"--model {self.model} would be overwritten: give another --output-dir")
        for named in split_names(self.corpus):
            if named.weight != 1:
                raise InputError(f"--corpus {self.corpus}: weights are for train; here each text comes once an epoch")
