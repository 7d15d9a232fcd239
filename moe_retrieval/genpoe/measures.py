"""The measures of a file of predictions: exact match and F1 of answers, top-k accuracy of passages."""

import os
from collections.abc import Iterable, Iterator

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.accuracy import TopK, marked
from moe_retrieval.genpoe.answer_metrics import exact_match, token_f1
from moe_retrieval.genpoe.examples import Example, answered, read_examples


def measure(examples: Iterable[Example], path: str | os.PathLike) -> tuple[int, dict[str, float]]:
    """-> how many questions, and means over them. All of a file have predictions, or none; and so with passages."""
    top_k = TopK()
    predicted = retrieved = 0
    matches = f1 = 0.0
    for example in top_k.watch(map(marked, examples)):
        retrieved += bool(example.ctxs)
        if example.prediction is not None:
            predicted += 1
            matches += exact_match(example.prediction, example.answers)
            f1 += token_f1(example.prediction, example.answers)
    total = top_k.questions
    if not predicted and not retrieved:
        raise InputError(f'{path}: expected a "prediction" or "ctxs" with each question, found neither')
    for what, count in (("prediction", predicted), ("ctxs", retrieved)):
        if count not in (0, total):
            raise InputError(f'{path}: expected "{what}" with every question, found it with {count} of {total}')
    answers = {"EM": matches / total, "F1": f1 / total} if predicted else {}
    return total, answers | (top_k.shares() if retrieved else {})


def with_answers_of(
    questions: str | os.PathLike, examples: Iterable[Example], path: str | os.PathLike
) -> Iterator[Example]:
    """These examples of `path` with the answers that another file has to the same questions: it has each of them."""
    known = {each.question: each.answers for each in answered(read_examples(questions), questions)}
    seen = set()
    for example in examples:
        if example.question not in known:
            raise InputError(f"{path}: the question {example.question!r:.80} is not in {questions}")
        seen.add(example.question)
        yield example._replace(answers=known[example.question])
    if len(seen) < len(known):
        lacking = next(question for question in known if question not in seen)
        raise InputError(f"{path}: has {len(seen)} of {len(known)} questions of {questions}; {lacking!r:.80} lacks")
