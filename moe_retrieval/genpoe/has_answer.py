"""Whether a passage has an answer in it, by DPR's rule: the answer's words, in a row, among the passage's.

A word is a run of letters, digits and marks, or one other sign that is neither space nor control character, of the text
in Unicode's decomposed form, in lower case.
"""

import unicodedata
from collections.abc import Iterable

import regex

WORD = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


def words(text: str) -> list[str]:
    """
    >>> words("Café No. 5")
    ['cafe\u0301', 'no', '.', '5']
    """
    return [word.lower() for word in WORD.findall(unicodedata.normalize("NFD", text))]


def has_answer(text: str, answers: Iterable[str]) -> bool:
    """An answer without a word is in no text (by DPR's own program in every one)."""
    among = _line(words(text))
    return any(_line(wanted) in among for wanted in map(words, answers) if wanted)


def _line(found: list[str]) -> str:
    """No word has a space in it: words in a row are a part of the line."""
    return f" {' '.join(found)} "
