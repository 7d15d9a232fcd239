"""What a run can be told: one dataclass that is the command line, the YAML file and what is saved beside a run.

The order in which values win: the command line, `--config FILE`, `--preset NAME`, the defaults here.
"""

import contextlib
import io
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import tyro
import yaml

from moe_retrieval.errors import InputError


@dataclass
class TrainConfig:
    """Trains a retriever, keeps the best, measures it, and leaves a directory to load, to evaluate and to search with.

    Flags that default to None take what the backbone or the variant wants.
    """

    # Data
    dataset: str = "docs"
    """docs, a BEIR data set by name, a BEIR-format folder, or a JSON-lines file of pairs, triplets or lists."""
    data_dir: str | None = None
    """Where data sets lie by name; besides, $MOE_RETRIEVAL_DATA is looked at."""
    negatives: Literal["in-batch", "bm25", "mined"] = "in-batch"
    """Where hard negatives come from, if any; mined: by the model itself, before training."""
    num_negatives: int | None = None
    """Hard negatives a query; None is 1 with bm25 and mined, 0 with in-batch."""

    # Model
    model: str = "minilm"
    """The backbone: an alias (minilm), a directory, a repository of the hub, or scratch (random weights)."""
    variant: Literal["dense", "sb-moe", "moe", "dense-wide", "random"] = "sb-moe"
    """dense; experts after the pooling (sb-moe) or in the encoder (moe); their controls dense-wide and random."""
    control_of: Literal["sb-moe", "moe"] | None = None
    """For variant dense-wide or random: what they are the control of; None is sb-moe."""
    num_experts: int | None = None
    """None is 6 for sb-moe, 8 for moe."""
    top_k: int | Literal["all"] | None = None
    """Experts that serve a token; None is 1 for sb-moe, 2 for moe."""
    layers: str | None = None
    """moe: the encoder's blocks that get experts, like 1,3,5, every-2 or all; None is every-2."""
    expert_size: int | None = None
    """Width inside an expert; None is half of the embedding for sb-moe, the backbone's own for moe."""
    router: Literal["softmax", "topk_softmax", "sigmoid"] | None = None
    """None is softmax."""
    gate: Literal["linear", "mlp"] | None = None
    """None is mlp for sb-moe, linear for moe."""
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
    pooling: Literal["mean", "cls", "max", "mean-max"] | None = None
    """None is the backbone's own, mean for scratch."""
    normalize: bool | None = None
    """Embeddings have length 1; None is the backbone's own, True for scratch."""
    query_prompt: str | None = None
    """Put before a query; None is the backbone's own."""
    doc_prompt: str | None = None
    """Put before a document; None is the backbone's own."""
    query_length: int | None = None
    """Tokens read of a query; None is 64."""
    doc_length: int | None = None
    """Tokens read of a document; None is 128 for docs, else 256."""

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
    max_positions: int = 512
    """--model scratch: most tokens of a text."""

    # Training
    output_dir: str = "runs/main"
    """The best model; checkpoints lie below it."""
    epochs: int | None = None
    """None is as many as max_steps needs."""
    max_steps: int | None = None
    """None is what the epochs have, or 100 where there is no epochs either."""
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
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    dropout: float = 0.0
    """In the encoder, in training."""
    loss: Literal["infonce", "triplet", "contrastive"] = "infonce"
    temperature: float = 0.05
    """infonce: what scores are divided by."""
    margin: float = 0.5
    """triplet: between two scores; contrastive: the distance beyond which nothing pushes."""
    eval_every: int = 50
    """Steps between validations; 0 is at the end alone."""
    save_every: int = 50
    """Steps between checkpoints; 0 is at the end alone."""
    patience: int = 0
    """Validations without a better one before training stops; 0 is no limit."""
    seed: int = 0
    resume: str = "auto"
    """auto: from the newest checkpoint of output_dir, if any; never; or the path of a checkpoint."""
    backend: Literal["auto", "triton", "native", "eager"] = "auto"
    no_eval: bool = False
    """No measuring and no index at the end."""

    def check(self) -> None:
        """Raises for numbers that no run can use."""
        least = {"batch_size": 1, "grad_accum": 1, "chunk_size": 0, "eval_every": 0, "save_every": 0, "patience": 0}
        least |= {"seed": 0, "max_steps": 1, "epochs": 1, "num_negatives": 0, "lr": 0, "expert_lr": 0}
        least |= {"weight_decay": 0, "clip": 0, "warmup": 0, "vocab_size": 300}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise InputError(f"--{name.replace('_', '-')} must be at least {smallest}, got {value}")
        if self.warmup > 1:
            raise InputError(f"--warmup is a share of the steps, 0 to 1, got {self.warmup}")

    def expert_changes(self) -> dict[str, Any]:
        """The flags about experts that were given, under the names of ExpertSettings."""
        names = ("num_experts", "top_k", "layers", "expert_size", "router", "gate", "noise", "combine", "renormalize")
        given = {name: getattr(self, name) for name in (*names, "activation", "z_coef")}
        given["balance_coef"] = self.aux_coef
        return {name: value for name, value in given.items() if value is not None}

    def usage(self) -> dict[str, Any]:
        """The flags about the use of the model, under the names of RetrieverSettings; None where none was given."""
        names = ("pooling", "normalize", "query_prompt", "doc_prompt", "query_length", "doc_length")
        given = {name: getattr(self, name) for name in names}
        if self.dataset == "docs" and self.doc_length is None:
            given["doc_length"] = 128
        return given


PRESETS: dict[str, dict[str, Any]] = {
    "sb-moe-paper": {
        "variant": "sb-moe", "num_experts": 6, "batch_size": 64, "lr": 1e-6, "expert_lr": 1e-4, "epochs": 30,
    },
    "ucsd": {
        "variant": "moe", "num_experts": 8, "top_k": 2, "lr": 5e-5, "expert_lr": 5e-5, "epochs": 20,
        "negatives": "bm25", "num_negatives": 1,
    },
}  # fmt: skip
"""The settings of arXiv 2412.11864 and of the UCSD report, both with TinyBERT among their backbones: --model
huawei-noah/TinyBERT_General_4L_312D or huawei-noah/TinyBERT_General_6L_768D. Any other takes them too."""

Config = TypeVar("Config")


def parse(
    kind: type[Config], arguments: Sequence[str], prog: str, presets: dict[str, dict[str, Any]] | None = None
) -> Config:
    """The command line -> a config, a dataclass of flags. `--help` ends the program.

    A preset and a file become arguments in front of the others, so that one parser checks them all.
    """
    earlier: list[str] = []
    rest: list[str] = []
    waiting = list(arguments)
    sources: dict[str, Callable[[str], dict[str, Any]]] = {"--config": read_yaml}
    if presets:
        sources = {"--preset": lambda name: _preset(name, presets), "--config": read_yaml}
    given: dict[str, list[str]] = {flag: [] for flag in sources}
    while waiting:
        argument = waiting.pop(0)
        flag, equals, value = argument.partition("=")
        if flag in sources:
            if not equals and not waiting:
                raise InputError(f"{flag} needs a value")
            given[flag].append(value if equals else waiting.pop(0))
        else:
            rest.append(argument)
    for flag, read in sources.items():
        for value in given[flag]:
            earlier += to_arguments(kind, read(value), f"{flag} {value}")
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                kind,
                prog=prog,
                args=earlier + rest,
                description=f"{kind.__doc__}\n\n{_usage(presets)}",
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code == 2:
            raise InputError(_in_one_line(complaint.getvalue(), prog)) from None
        raise


def _in_one_line(complaint: str, prog: str) -> str:
    """What stands in the upper part of a framed complaint."""
    framed = [line.strip("│ ") for line in complaint.splitlines() if line.startswith("│")]
    upper = list(itertools.takewhile(lambda line: not line.startswith("──"), framed))
    return f"{' '.join(upper) or complaint.strip()} (see {prog} --help)"


def _usage(presets: dict[str, dict[str, Any]] | None) -> str:
    lines = ["--config FILE.yaml: values for any of these flags; the command line wins."]
    if presets:
        lines.append(f"--preset {{{','.join(presets)}}}: the settings of a paper, for any backbone.")
    return "\n".join(lines)


def _preset(name: str, presets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if name not in presets:
        raise InputError(f"--preset must be one of {', '.join(presets)}; got {name!r}")
    return presets[name]


def read_yaml(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"--config: cannot read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"--config: {path} must hold a mapping of flags to values, got {type(values).__name__}")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def to_arguments(kind: type, values: dict[str, Any], origin: str) -> list[str]:
    """Values by field -> the command line that says the same."""
    known = {field.name for field in fields(kind)}
    hints = get_type_hints(kind)
    arguments = []
    for name, value in values.items():
        if name not in known:
            raise InputError(f"{origin}: no flag is called {name}; expected some of {', '.join(sorted(known))}")
        flag = name.replace("_", "-")
        if hints[name] is bool:
            if not isinstance(value, bool):
                raise InputError(f"{origin}: {name} must be true or false, got {value!r}")
            arguments += [f"--{flag}"] if value else []
        else:
            arguments += [f"--{flag}", str(value)]
    return arguments


def save(config: Any, path: Path) -> None:
    """A file that `--config` takes."""
    from moe_retrieval.export import write

    write(path, yaml.safe_dump(asdict(config), sort_keys=False).encode())


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a command: bad input is one line and exit status 2."""
    try:
        main(sys.argv[1:])
    except InputError as error:
        rank = os.environ.get("RANK", "0")
        print("error:" if rank == "0" else f"rank {rank}: error:", error, file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
