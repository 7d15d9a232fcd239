"""python -m moe_retrieval.genpoe.evaluate: predicted answers and retrieved passages, measured."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from moe_retrieval.cli import parse, run_command


@dataclass
class EvaluateConfig:
    """Measures predictions by exact match and token F1, and retrieved passages by top-k accuracy: what the file has."""

    predictions: str
    """Questions with "prediction", with "ctxs", or with both: JSON or JSON lines, also .gz."""
    questions: str | None = None
    """Where the answers are, if the predictions have none: the same questions as DPR has them."""
    output_dir: str | None = None
    """Where metrics.json goes; None is nowhere."""


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(EvaluateConfig, arguments, "python -m moe_retrieval.genpoe.evaluate")
    from moe_retrieval.evaluation.results import report
    from moe_retrieval.genpoe.examples import answered, read_examples
    from moe_retrieval.genpoe.measures import measure, with_answers_of
    from moe_retrieval.locks import locked
    from moe_retrieval.progress import Meter

    with locked(config.output_dir):
        examples = read_examples(config.predictions)
        if config.questions is not None:
            examples = with_answers_of(config.questions, examples, config.predictions)
        with Meter("measuring"):
            count, measures = measure(answered(examples, config.predictions), config.predictions)
        print(f"{config.predictions}: {count} questions")
        origin = {"predictions": config.predictions, "questions": config.questions, "count": count}
        report(measures, config.output_dir, origin)


if __name__ == "__main__":
    run_command(main)
