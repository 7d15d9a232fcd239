"""What a language model reads of a question and its passages, as token ids.

Knowledge: / passages / Question: question / Answer:, a line each, as in the sources; without passages, the last two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.examples import Passage
from moe_retrieval.genpoe.prompts import shown


def prompt(question: str, passages: Sequence[str] = ()) -> str:
    """Up to the answer.

    >>> prompt("Where does Ann live?", ["Ann lives in Elgin."])
    'Knowledge:\\nAnn lives in Elgin.\\nQuestion: Where does Ann live?\\nAnswer:'
    """
    return f"{_knowledge(passages)}Question: {question}\nAnswer:"


def _knowledge(passages: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in ("Knowledge:", *passages)) if passages else ""


class Prompt(NamedTuple):
    ids: list[int]
    start: int
    """The first token behind the passages"""


@dataclass
class Wording:
    tokenizer: Any
    titles: bool
    """Whether a passage's title stands before its text."""
    passage_length: int
    """Tokens that are read of a passage."""
    is_encoder_decoder: bool = False

    def __post_init__(self) -> None:
        self.cut: set[str] = set()
        """Passages that were not read to their end."""
        if not getattr(self.tokenizer, "is_fast", False):
            raise InputError("the language model's tokenizer is not fast: it does not say where in a text a token is")
        start = self.tokenizer.bos_token_id
        self.first = [start] if start is not None and start != self.tokenizer.pad_token_id else []
        end = self.tokenizer.eos_token_id
        self.last = [end] if end is not None else self._tokens("\n")[0]
        if not self.last:
            raise InputError("the language model's tokenizer has no token for the end of a text, and none for a line's")
        self.stops = sorted({self.last[-1], *self._line_end()})
        """Tokens that end an answer"""

    def _line_end(self) -> list[int]:
        """Where a tokenizer has one."""
        last = self._tokens("a\n")[0][-1:]
        return last if self.tokenizer.decode(last) == "\n" else []

    def _tokens(self, text: str) -> tuple[list[int], list[int]]:
        """-> ids, and where in the text each ends"""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return found["input_ids"], [end for _, end in found["offset_mapping"]]

    def told(self, passage: Passage) -> str:
        return " ".join(shown(passage, "passage").split()) if self.titles else " ".join(passage.text.split())

    def passage(self, passage: Passage) -> list[int]:
        """What its expert is made of."""
        ids, _ = self._tokens(self.told(passage))
        if len(ids) > self.passage_length:
            self.cut.add(passage.id)
        return ids[: self.passage_length]

    def asked(self, question: str, passages: Sequence[Passage] = ()) -> Prompt:
        """`passages` are those in the prompt."""
        return self._framed(*self._split(question, passages, ""))[0]

    def answered(self, question: str, answer: str, passages: Sequence[Passage] = ()) -> tuple[Prompt, list[int]]:
        """With the tokens of the answer, and what ends it."""
        return self._framed(*self._split(question, passages, answer))

    def _split(self, question: str, passages: Sequence[Passage], answer: str) -> tuple[list[int], int, int]:
        """-> ids of the whole, how many of them are the passages', and how many the prompt's"""
        told = [self.told(passage) for passage in passages]
        before = prompt(" ".join(question.split()), told)
        ids, ends = self._tokens(f"{before} {' '.join(answer.split())}" if answer else before)
        head = len(_knowledge(told))
        return ids, sum(end <= head for end in ends), sum(end <= len(before) for end in ends)

    def _framed(self, ids: list[int], known: int, asked: int) -> tuple[Prompt, list[int]]:
        end = self.last if self.is_encoder_decoder else []
        question = Prompt([*self.first, *ids[:asked], *end], len(self.first) + known)
        return question, [*ids[asked:], *self.last]
