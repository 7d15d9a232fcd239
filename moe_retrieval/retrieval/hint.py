"""The command that searches an index, with a question that its documents can answer."""

import shlex
from pathlib import Path

WORDS = 12


def example_question(text: str) -> str:
    """The first words of a query or of a document: whatever the corpus is about, something in it is about them.

    >>> example_question("one two three four five six seven eight nine ten eleven twelve thirteen")
    'one two three four five six seven eight nine ten eleven twelve'
    """
    return " ".join(text.split()[:WORDS]) or "a question"


def search_hint(folder: str | Path, question: str) -> str:
    return f"search:  python -m moe_retrieval.search --index {shlex.quote(str(folder))} {shlex.quote(question)}"
