"""What a training run can be told: one dataclass that is the command line, the YAML file and what a run saves."""

import re
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import yaml

from moe_retrieval import files
from moe_retrieval.bounds import check_flags, flag
from moe_retrieval.dataset_names import Named, check_columns, split_names
from moe_retrieval.errors import InputError
from moe_retrieval.models.typed import MOST

SCRATCH = "scratch"
"""The --model that has random weights."""
LEAST_OF = {
    "batch_size": 1, "grad_accum": 1, "chunk_size": 0, "eval_every": 0, "save_every": 0, "patience": 0, "seed": 0,
    "max_steps": 1, "epochs": 1, "num_negatives": 0, "lr": 0, "expert_lr": 0, "weight_decay": 0, "clip": 0, "warmup": 0,
    "aux_coef": 0, "z_coef": 0, "vocab_size": 300, "keep_checkpoints": 1, "train_queries": 1,
    "drop_upcycling": 0,
}  # fmt: skip
MOST_OF = {"seed": 2**32 - 1, "vocab_size": 10**7, "num_layers": 1000}
"""The least and the most that these can be; any other int is at most `MOST`."""

CONTROLS = ("dense-wide", "random")
"""The variants that show whether it is the experts that help."""
OF_EXPERTS = (
    "num_experts", "top_k", "layers", "expert_size", "router", "gate", "noise", "combine", "renormalize", "activation",
    "aux_coef", "z_coef", "drop_upcycling",
)  # fmt: skip
"""The flags that a model without experts cannot take."""

SENSELESS = {"dense": OF_EXPERTS, "sb-moe": ("layers", "drop_upcycling"), "moe": ("combine",)}
"""Variant -> the flags about experts that it cannot take."""

EPOCHS = re.compile(r"(\d+(?:\.\d+)?)e")
"""What an interval in epochs looks like."""

EXPERT_LR = 10
"""Times the backbone's learning rate: new parameters start from nothing."""


@dataclass
class TrainConfig:
    """Trains a retriever, keeps the best, measures it, and leaves a directory to load, to evaluate and to search with.

    The same command again goes on where a run was stopped. What it may change then: the number of steps or epochs, how
    often is validated and saved, how many checkpoints stay, the patience, the backend, and where files lie.
    """

    # Data
    dataset: str = "docs"
    """docs, a BEIR data set by name, a BEIR-format folder, or JSON lines of pairs {"query": ..., "positive": ...},
    triplets (and "negative") or lists ("positives", "negatives"); examples/data has one of each. Several with commas
    between, docs,scifact:2: the number is how often an epoch goes through its pairs."""
    data_dir: str | None = None
    """Where data sets lie by name, besides $MOE_RETRIEVAL_DATA."""
    columns: str | None = None
    """hf: which column is which field of a line, like query=question,positive=answer; None is by their names."""
    negatives: Literal["in-batch", "bm25", "mined"] = "in-batch"
    """Where hard negatives come from, documents that look like an answer and are none: bm25 finds them by words, mined
    by the model before training; in-batch has none but those that the data names."""
    num_negatives: int | None = None
    """Hard negatives a query; None is 1 with bm25 and mined, 0 with in-batch."""

    # Model
    model: str = "minilm"
    """The backbone: an alias (minilm), a directory, a repository of the hub (NAME@REVISION pins it), or scratch (random
    weights); or an earlier run, for a second stage. With :3 behind it, its first 3 blocks alone."""
    variant: Literal["dense", "sb-moe", "moe", "dense-wide", "random"] = "sb-moe"
    """dense; experts after the pooling (sb-moe) or in the encoder (moe); their controls dense-wide and random."""
    control_of: Literal["sb-moe", "moe"] | None = None
    """For variant dense-wide or random: what they are the control of; None is sb-moe."""
    num_experts: int | None = None
    """Experts of a layer; None is 6 for sb-moe, 8 for moe."""
    top_k: int | Literal["all"] | None = None
    """Experts of a token; None is 1 for sb-moe, 2 for moe."""
    layers: str | None = None
    """moe: the encoder's blocks that get experts, like 1,3,5, every-2 or all; None is every-2."""
    expert_size: int | None = None
    """Width inside an expert; None is half of the embedding for sb-moe, the backbone's own for moe."""
    router: Literal["softmax", "topk_softmax", "sigmoid"] | None = None
    """What makes weights of the router's scores: over all experts, over the chosen, or each for itself; None is
    softmax."""
    gate: Literal["linear", "mlp"] | None = None
    """The network of the router; None is mlp for sb-moe, linear for moe."""
    noise: bool | None = None
    """Trained noise on the router's logits; None is True for sb-moe, False for moe."""
    combine: Literal["residual", "normalized"] | None = None
    """sb-moe: x + mix, or x + mix / |mix|; None is residual."""
    renormalize: bool | None = None
    """The chosen experts' weights sum to 1; None is False for sb-moe, True for moe."""
    activation: str | None = None
    """Of an expert: gelu, gelu_tanh, relu, silu, swiglu, geglu; None is relu for sb-moe, the backbone's for moe."""
    aux_coef: float | None = None
    """Coefficient of the router's balance loss; None is 0.01."""
    z_coef: float | None = None
    """Coefficient of the router's z-loss; None is 0."""
    drop_upcycling: float | None = None
    """moe: the share of each expert's inner units that are drawn anew, so that experts do not start as copies of the
    backbone's feed-forward part (Drop-Upcycling's r); None is 0."""
    pooling: Literal["mean", "cls", "max", "mean-max"] | None = None
    """How an embedding is made of the tokens; None is the backbone's own, mean for scratch."""
    normalize: bool | None = None
    """Embeddings have length 1; None is the backbone's own, True for scratch."""
    query_prompt: str | None = None
    """Put before a query; None is the backbone's own."""
    doc_prompt: str | None = None
    """Put before a document; None is the backbone's own."""
    query_length: int | None = None
    """Tokens read of a query; None is the backbone's own."""
    doc_length: int | None = None
    """Tokens read of a document; None is 128 for docs alone, else the backbone's own."""

    # A model from scratch
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

    # Training
    output_dir: str = "runs/main"
    """The best model; checkpoints lie below it."""
    epochs: int | None = None
    """Times that the training pairs are gone through; None is as many as max_steps needs."""
    max_steps: int | None = None
    """Where training ends; None is what the epochs have, or 100 where there is no epochs either."""
    batch_size: int = 64
    """Queries a step, over all processes, before accumulation."""
    chunk_size: int = 0
    """Texts that a process embeds at a time (GradCache); 0 is all at once."""
    grad_accum: int = 1
    """Batches whose gradients make one step."""
    lr: float = 5e-5
    """Peak learning rate of the backbone."""
    expert_lr: float | None = None
    """Of the parameters that the variant adds; None is 10 times lr."""
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
    dropout: float = 0.0
    """In the encoder, in training."""
    loss: Literal["infonce", "triplet", "contrastive"] = "infonce"
    """infonce: the answer against all documents of the batch; triplet: against one; contrastive: pairs with labels."""
    temperature: float = 0.05
    """infonce: what scores are divided by."""
    margin: float = 0.5
    """triplet: between two scores; contrastive: the distance beyond which nothing pushes."""
    train: Literal["all", "experts"] = "all"
    """experts: what the variant adds alone, the backbone stays as it is."""
    train_queries: int | None = None
    """Queries of each data set that are trained on, the fewer a part of the more; None is all."""
    gradient_checkpointing: bool = False
    """Blocks compute again in the backward pass what they would keep for it: less memory, more time."""
    eval_every: int | str = 50
    """Steps between validations, or epochs with an e behind (1e, 0.5e); 0 is at the end alone."""
    save_every: int | str = 50
    """Steps between checkpoints, or epochs with an e behind; 0 is at the end alone."""
    keep_checkpoints: int = 2
    """The newest checkpoints that stay."""
    keep: Literal["best", "last"] = "best"
    """Which model is kept: that of the best validation, or of the last step."""
    patience: int = 0
    """Validations without a better one before training stops; 0 is no limit."""
    seed: int = 0
    """Of all that is random: new weights, the order of the data, dropout."""
    resume: str = "auto"
    """auto: from the newest checkpoint of output_dir, if any; never; or the path of a checkpoint."""
    backend: Literal["auto", "triton", "native", "eager"] = "auto"
    """What computes the experts: kernels for GPUs, C++, plain PyTorch; auto is the best of this machine."""
    no_eval: bool = False
    """No measuring and no index at the end."""

    def check(self) -> None:
        """Raises for what no run can use, before anything is loaded."""
        self._check_numbers()
        self._check_together()

    def _check_numbers(self) -> None:
        check_flags(self, LEAST_OF, MOST_OF, MOST)
        if self.warmup > 1:
            raise InputError(f"--warmup is a share of the steps, 0 to 1, got {self.warmup}")
        if (self.drop_upcycling or 0) > 1:
            raise InputError(f"--drop-upcycling is a share of the inner units, 0 to 1, got {self.drop_upcycling}")

    def _check_together(self) -> None:
        check_columns(self.datasets(), self.columns)
        changes = [name for name in OF_EXPERTS if getattr(self, name) is not None]
        is_control, family = self.variant in CONTROLS, self.family
        if self.variant == "dense" and changes:
            raise InputError(f"--variant dense has no experts; it cannot take {', '.join(sorted(changes))}")
        if self.control_of and not is_control:
            raise InputError(f"--control-of goes with --variant dense-wide or random, got --variant {self.variant}")
        if family == "sb-moe" and self.layers:
            raise InputError("--layers is for --variant moe: sb-moe is one layer after the pooling")
        if self.drop_upcycling and family == "sb-moe":
            raise InputError("--drop-upcycling is for --variant moe: experts after the pooling are no copies")
        if self.drop_upcycling and self.model == SCRATCH:
            raise InputError("--drop-upcycling needs a backbone to draw from: expected --model other than scratch")
        if family == "moe" and self.combine:
            raise InputError("--combine is for --variant sb-moe: experts in the encoder stand in its residual stream")
        if self.negatives == "mined" and self.model == SCRATCH:
            raise InputError("--negatives mined needs a backbone that can rank: expected --model other than scratch")
        if self.negatives != "in-batch" and self.num_negatives == 0:
            raise InputError(f"--negatives {self.negatives} needs --num-negatives of at least 1, got 0")
        for name in ("eval_every", "save_every"):
            self.interval(name, Fraction(1))
        if self.train == "experts" and self.variant == "dense":
            raise InputError("--train experts: --variant dense has none")
        if self.keep == "last" and self.patience:
            raise InputError("--patience is for --keep best: what it waits for is a better model")
        if self.model != SCRATCH and Path(self.model).resolve() == Path(self.output_dir).resolve():
            raise InputError(f"--model {self.model} would be overwritten: give another --output-dir")

    def interval(self, name: str, steps_an_epoch: Fraction) -> Fraction:
        """--eval-every or --save-every, in steps."""
        value = getattr(self, name)
        if not isinstance(value, str):
            return Fraction(value)
        match = EPOCHS.fullmatch(value)
        if match is None:
            raise InputError(f"{flag(name)} is a number of steps, or of epochs like 1e or 0.5e, got {value!r:.40}")
        return Fraction(match[1]) * steps_an_epoch

    @property
    def family(self) -> str:
        """The variant itself; of a control, that which it is the control of."""
        return (self.control_of or "sb-moe") if self.variant in CONTROLS else self.variant

    @property
    def peak_expert_lr(self) -> float:
        return EXPERT_LR * self.lr if self.expert_lr is None else self.expert_lr

    def expert_changes(self) -> dict[str, Any]:
        """The flags about experts that were given, under the names of ExpertSettings."""
        given = {name: getattr(self, name) for name in OF_EXPERTS}
        given["balance_coef"] = given.pop("aux_coef")
        del given["drop_upcycling"]  # of how they start, and not of what they are
        return {name: value for name, value in given.items() if value is not None}

    def datasets(self) -> list[Named]:
        return split_names(self.dataset)

    def usage_changes(self) -> dict[str, Any]:
        """The flags about the use of the model, under the names of Usage; None changes nothing."""
        names = ("pooling", "normalize", "query_prompt", "doc_prompt", "query_length")
        is_docs = [named.name for named in self.datasets()] == ["docs"]
        doc_length = 128 if is_docs and self.doc_length is None else self.doc_length
        return {name: getattr(self, name) for name in names} | {"doc_length": doc_length}


DEFAULTS = {field.name: field.default for field in fields(TrainConfig)}
"""What a flag was for a run that is older than the flag."""


def save(config: TrainConfig, path: Path) -> None:
    """A file that `--config` takes."""
    files.write(path, yaml.safe_dump(asdict(config), sort_keys=False).encode())


def read(path: str) -> dict[str, Any]:
    """The flags of a file, by field."""
    try:
        values = yaml.safe_load(Path(path).read_text("utf-8"))
    except RecursionError:
        raise InputError(f"--config: cannot read {path}: nested too deeply") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"--config: cannot read {path}: {' '.join(str(error).split()):.200}") from None
    if not isinstance(values, dict):
        raise InputError(f"--config: {path} must hold a mapping of flags to values, got {type(values).__name__}")
    return {str(name).replace("-", "_"): value for name, value in values.items()}
