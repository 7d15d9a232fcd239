"""Top-k accuracy of retrieval: the share of questions with an answer in one of their first k passages."""

from collections.abc import Iterable, Iterator

from moe_retrieval.genpoe.examples import Example
from moe_retrieval.genpoe.has_answer import has_answer

CUTS = (1, 5, 20, 100)
"""The ranks that DPR's tables name"""


def marked(example: Example) -> Example:
    """Each of its passages says whether it has an answer; one that says so already is not looked at again."""
    if not example.answers:
        return example
    looked_at = (
        each if each.has_answer is not None else each._replace(has_answer=has_answer(each.text, example.answers))
        for each in example.ctxs
    )
    return example._replace(ctxs=tuple(looked_at))


class TopK:
    """Counts over marked examples as they go by; questions without answers do not count."""

    def __init__(self) -> None:
        self.questions = 0
        self.most = 0
        """Passages of a question"""
        self.hits = dict.fromkeys(CUTS, 0)

    def watch(self, examples: Iterable[Example]) -> Iterator[Example]:
        """The same examples, counted."""
        for example in examples:
            self.add(example)
            yield example

    def add(self, example: Example) -> None:
        if not example.answers:
            return
        self.questions += 1
        self.most = max(self.most, len(example.ctxs))
        for cut in CUTS:
            self.hits[cut] += any(passage.has_answer for passage in example.ctxs[:cut])

    def shares(self) -> dict[str, float]:
        """{"top-1": 0.4, ...}: no further than the longest list goes."""
        return {f"top-{cut}": hits / self.questions for cut, hits in self.hits.items() if cut <= self.most}
