"""What the experiment asks: the same questions, each time with other passages."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from moe_retrieval.genpoe.examples import Example, Passage

MOST = 10
"""Passages of which one is right"""


class Way(NamedTuple):
    """One of answering; the passages are those of a file that `asked` makes."""

    name: str
    file: str
    passages: int
    """That become experts"""
    in_prompt: int = 0


WAYS = (
    Way("closed book", "right", 0),
    Way("right passage in the prompt", "right", 0, 1),
    Way("GenPoE, right passage", "right", 1),
    Way("GenPoE and prompt, right passage", "right", 1, 1),
    Way("GenPoE, another passage of the same person", "same", 1),
    Way("GenPoE, a relative's passage", "relative", 1),
    *(Way(f"GenPoE, {count} passages, one of them right", "weighed", count) for count in (2, 5, MOST)),
    *(Way(f"GenPoE, {count} passages, all weighed alike", "alike", count) for count in (2, 5, MOST)),
    Way("GenPoE, first passage of BM25", "bm25", 1),
    Way("GenPoE, first passage of the reranker", "reranked", 1),
)


def with_one_right(examples: Iterable[Example]) -> Iterator[Example]:
    """With the right passage and others, the same person's first: what the reranker is to weigh."""
    for example in examples:
        yield _asked(example, (*example.positives, *example.hard_negatives)[:MOST])


def asked(examples: Iterable[Example], weighed: Iterable[Example]) -> Iterator[dict[str, Example]]:
    """File -> a question with its passages; `weighed` are the same questions as `with_one_right`, reranked."""
    for example, ranked in zip(examples, weighed, strict=True):
        (right,), wrong = example.positives, example.hard_negatives
        right_first = sorted(ranked.ctxs, key=lambda passage: passage.id != right.id)
        yield {
            "right": _asked(example, (right,)),
            "same": _asked(example, [each for each in wrong if each.title == right.title][:1]),
            "relative": _asked(example, [each for each in wrong if each.title != right.title][:1]),
            "weighed": _asked(example, right_first),
            "alike": _asked(example, [passage._replace(score=None) for passage in right_first]),
        }


def _asked(example: Example, passages: Iterable[Passage]) -> Example:
    return Example(example.question, example.answers, tuple(passages))
