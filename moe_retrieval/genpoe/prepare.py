"""python -m moe_retrieval.genpoe.prepare: what a reranker is trained on, of questions with retrieved passages."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from moe_retrieval.bounds import check_bounds, flag
from moe_retrieval.cli import parse, run_command


@dataclass
class PrepareConfig:
    """Writes JSON lines {"query", "pos", "neg", "prompt"} for training a reranker: passages with an answer, and others.

    A question that lacks either is left out.
    """

    input: str
    """Questions with answers and passages, as the command retrieve writes them, or DPR's training data (JSON or JSON
    lines, also .gz)."""
    output: str
    """The .jsonl to write."""
    by: Literal["passage", "title"] = "passage"
    """What the reranker will see of a passage: title and text, or, as in the paper, the title alone."""
    negatives: int | None = None
    """Negatives a question at most, the best ranked ones; None is all."""

    def __post_init__(self) -> None:
        check_bounds(self, {"negatives": (1, None)}, flag)


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(PrepareConfig, arguments, "python -m moe_retrieval.genpoe.prepare")
    from moe_retrieval.genpoe.examples import answered, check_target, read_examples
    from moe_retrieval.genpoe.groups import group_of, write_groups
    from moe_retrieval.progress import Meter

    check_target(config.output, (".jsonl",))
    with Meter("preparing"):
        examples = answered(read_examples(config.input), config.input)
        groups = (group_of(example, config.by, config.negatives) for example in examples)
        written, left_out = write_groups(config.output, groups)
    print(f"{written} questions in {config.output}; {left_out} left out, without an answer or without a negative")


if __name__ == "__main__":
    run_command(main)
