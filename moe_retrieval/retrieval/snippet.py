"""The stretch of a text to show for a question."""

import re
from collections import deque

SNIPPET = 160
"""Characters"""

LOOKED_AT = 100_000
"""Characters of a text in which the stretch is looked for: more than a model reads of it"""


def snippet(text: str, question: str, size: int = SNIPPET) -> str:
    """The stretch of a text, as one line, that has most words of the question."""
    text = " ".join(text[:LOOKED_AT].split())
    if len(text) <= size:
        return text
    asked = {word.lower() for word in re.findall(r"\w+", question) if len(word) > 2}
    places = [match.start() for match in re.finditer(r"\w+", text) if match[0].lower() in asked]
    best = _densest(places, size - 20)
    start = 0
    if best > size // 2:
        sentence_end = text.rfind(". ", best - size // 2, best)
        start = best if sentence_end < 0 else sentence_end + 2
    cut = text[start : start + size]
    if start + size < len(text):
        cut = cut.rsplit(" ", 1)[0] + " …"
    return ("… " if start else "") + cut


def _densest(places: list[int], width: int) -> int:
    """The first of these places, which ascend, that has most of them less than `width` after it.

    >>> _densest([3, 50, 90, 95, 99], 20)
    90
    """
    best, most = 0, 0
    near: deque[int] = deque()
    for place in places:
        near.append(place)
        while near[0] + width <= place:
            near.popleft()
        if len(near) > most:
            best, most = near[0], len(near)
    return best
