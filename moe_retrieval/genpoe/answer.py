"""python -m moe_retrieval.genpoe.answer: questions, answered with passages as experts, in the prompt, or with none."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe_retrieval.bounds import check_bounds, flag
from moe_retrieval.cli import parse, run_command
from moe_retrieval.errors import InputError

log = logging.getLogger("moe_retrieval")


@dataclass
class AnswerConfig:
    """Writes each question with its "prediction", for the command evaluate.

    --passages 0 is the closed book, or with --in-prompt the language model with passages to read; --passages with
    --in-prompt is both. A run that was stopped goes on.
    """

    model: str
    """What the command train left; with --passages 0 also any language model: a directory, or a repository."""
    input: str
    """Questions and passages, as the commands retrieve and rerank write them; also .gz."""
    output: str
    """The file to write, .json or .jsonl."""
    passages: int = 5
    """Passages of a question that become experts, the best ranked ones; 0 is none."""
    in_prompt: int = 0
    """Passages of a question that stand in the prompt."""
    experts: str | None = None
    """The folder where the experts of passages are, from the command generate or index --experts; None makes them."""
    language_model: str | None = None
    """Where the language model is, if not where it was; None is where it was."""
    titles: bool | None = None
    """A passage's title is read before its text; None is as in training, else False."""
    max_new_tokens: int = 32
    """Tokens of an answer."""
    batch_size: int = 16
    """Questions that are answered at a time."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """The type that is computed in; auto is bf16 where that is faster, else fp32."""

    def __post_init__(self) -> None:
        least = {"passages": 0, "in_prompt": 0, "max_new_tokens": 1, "batch_size": 1}
        check_bounds(self, {name: (value, None) for name, value in least.items()}, flag)
        if self.experts is not None and not self.passages:
            raise InputError("--experts goes with --passages, which is 0")


def answer(config: AnswerConfig) -> str:
    """What the command does; -> what to say of it"""
    import torch

    from moe_retrieval.genpoe.answering import Answering, answer_file
    from moe_retrieval.genpoe.examples import check_target
    from moe_retrieval.genpoe.expert_store import ExpertStore
    from moe_retrieval.genpoe.reader_files import open_reader

    check_target(config.output)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reader = open_reader(
        config.model, device, config.precision, config.language_model, needs_experts=config.passages > 0
    )
    if config.titles is not None:
        reader.wording.titles = config.titles
    store = None if config.experts is None else ExpertStore(Path(config.experts), reader)
    how = {
        "passages": config.passages, "in_prompt": config.in_prompt, "batch_size": config.batch_size,
        "most": config.max_new_tokens,
    }  # fmt: skip
    answering = Answering(reader, store, **how)
    data = {"input": config.input, "bytes": Path(config.input).stat().st_size if Path(config.input).exists() else 0}
    about = {
        **how,
        **data,
        "reader": reader.fingerprint,
        "precision": reader.precision,
        "titles": reader.wording.titles,
    }
    count = answer_file(answering, config.input, config.output, about)
    if reader.wording.cut:
        log.warning("%d passages are longer than the hypernetwork reads, and were cut", len(reader.wording.cut))
    experts, answers = answering.seconds["experts"], answering.seconds["answers"]
    source = "made" if store is None else "loaded"
    said = f"; {answering.made:,} experts {source} in {experts:.2f} s, answers in {answers:.2f} s"
    return f"{count:,} questions answered in {config.output}{said if config.passages else ''}"


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    print(answer(parse(AnswerConfig, arguments, "python -m moe_retrieval.genpoe.answer")))


if __name__ == "__main__":
    run_command(main)
