"""python -m moe_retrieval.genpoe.generate: the experts of the passages of questions, made once and kept."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe_retrieval.bounds import check_bounds, flag
from moe_retrieval.cli import parse, run_command
from moe_retrieval.errors import InputError


@dataclass
class GenerateConfig:
    """Makes the experts of the passages that questions come with, for the command answer. A run that was stopped goes
    on. (The experts of a whole corpus, beside its index: python -m moe_retrieval.index --experts.)"""

    model: str
    """What the command train left."""
    input: str
    """Questions and passages, as the commands retrieve and rerank write them; also .gz."""
    output_dir: str
    """The folder where experts go."""
    passages: int = 5
    """Passages of a question, the best ranked ones."""
    language_model: str | None = None
    """Where the language model is, if not where it was; None is where it was."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """The type that is computed and kept in; auto is bf16 where that is faster, else fp32."""

    def __post_init__(self) -> None:
        check_bounds(self, {"passages": (1, None)}, flag)


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(GenerateConfig, arguments, "python -m moe_retrieval.genpoe.generate")
    import torch

    from moe_retrieval.genpoe.answering import ranked_passages
    from moe_retrieval.genpoe.examples import read_examples
    from moe_retrieval.genpoe.expert_store import store_experts
    from moe_retrieval.genpoe.reader_files import open_reader
    from moe_retrieval.locks import locked

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with locked(config.output_dir):
        reader = open_reader(config.model, device, config.precision, config.language_model)
        examples = read_examples(config.input)
        passages = {each.id: each for example in examples for each in ranked_passages(example)[: config.passages]}
        if "" in passages:
            raise InputError(f"{config.input}: expected passages with an id, by which their experts are found")
        size = store_experts(reader, passages.values(), len(passages), Path(config.output_dir))
        print(f"experts of {len(passages):,} passages in {config.output_dir}, {size:,} bytes each")


if __name__ == "__main__":
    run_command(main)
