"""The stretch of a text to show for a question."""

import re

SNIPPET = 160
"""Characters"""


def snippet(text: str, question: str, size: int = SNIPPET) -> str:
    """The stretch of a text, as one line, that has most words of the question."""
    text = " ".join(text.split())
    if len(text) <= size:
        return text
    asked = {word for word in re.findall(r"\w+", question.lower()) if len(word) > 2}
    places = [match.start() for match in re.finditer(r"\w+", text.lower()) if match[0] in asked]
    best = max(places, key=lambda first: sum(first <= place < first + size - 20 for place in places), default=0)
    start = 0
    if best > size // 2:
        sentence_end = text.rfind(". ", best - size // 2, best)
        start = best if sentence_end < 0 else sentence_end + 2
    cut = text[start : start + size]
    if start + size < len(text):
        cut = cut.rsplit(" ", 1)[0] + " …"
    return ("… " if start else "") + cut
