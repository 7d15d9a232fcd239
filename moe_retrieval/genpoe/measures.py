"""The measures of a file of predictions: exact match and F1 of answers, top-k accuracy of passages."""

import os
from collections import defaultdict, deque
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
    """These examples of `path` with the answers that another file has to the same questions, each as often.

    One that is asked several times may have other answers each time: they are taken in their order.
    """
    known: defaultdict[str, deque[tuple[str, ...]]] = defaultdict(deque)
    for each in answered(read_examples(questions), questions):
        known[each.question].append(each.answers)
    total = sum(map(len, known.values()))
    for example in examples:
        if example.question not in known:
            raise InputError(f"{path}: the question {example.question!r:.80} is not in {questions}")
        if not known[example.question]:
            raise InputError(f"{path}: the question {example.question!r:.80} comes more often than in {questions}")
        answers = known[example.question].popleft()
        if answers != example.answers:  # what its passages say of themselves is of other answers
            example = example._replace(ctxs=tuple(each._replace(has_answer=None) for each in example.ctxs))
        yield example._replace(answers=answers)
    lacking = [question for question, left in known.items() for _ in left]
    if lacking:
        told = f"{total - len(lacking)} of {total} questions of {questions}; {lacking[0]!r:.80} lacks"
        raise InputError(f"{path}: has {told}")
