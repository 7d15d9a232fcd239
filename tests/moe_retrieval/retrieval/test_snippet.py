"""A snippet is about the question."""

import random
import re
import time

import pytest

from moe_retrieval.retrieval.snippet import SNIPPET, snippet

LONG = (
    "First words of it. "
    + "Padding that says nothing. " * 20
    + "Here is the stable sort. "
    + "More padding follows. " * 20
)


def test_a_snippet_is_about_the_question():
    found = snippet(LONG, "stable sort of a tensor")
    assert "Here is the stable sort." in found
    assert found.startswith("… ")
    assert found.endswith(" …")
    assert len(found) <= SNIPPET + 4
    assert snippet(LONG, "unrelated").startswith("First words of it.")
    assert snippet("short\n  text", "x") == "short text"
    assert snippet("", "x") == ""
    assert len(snippet("x" * 500, "y")) <= SNIPPET + 4
    assert snippet("hay " * 100 + "needle " + "hay " * 100, "a needle").startswith("… needle hay")
    twice = "sort " + "hay " * 100 + "stable sort " + "hay " * 100
    assert snippet(twice, "stable sort").startswith("… stable sort hay")


def best_start(text, question, size):
    """Where the stretch with most words of the question begins, by trying every word."""
    asked = {word for word in question.lower().split() if len(word) > 2}
    words = [(match.start(), match[0].lower()) for match in re.finditer(r"\S+", text)]
    places = [place for place, word in words if word in asked]
    counts = [sum(place <= other < place + size - 20 for other in places) for place in places]
    return places[counts.index(max(counts))] if places else 0


def test_the_best_stretch_is_that_of_a_search_that_tries_them_all():
    draw = random.Random(0)
    vocabulary = ["hay"] * 12 + ["stable", "sort", "tensor", "row"]
    for _ in range(300):
        text = " ".join(draw.choice(vocabulary) for _ in range(draw.randint(40, 90)))
        size = draw.choice([60, 100])
        found = snippet(text, "stable sort of a tensor", size)
        start = best_start(text, "stable sort of a tensor", size)
        begins = text[start:] if start > size // 2 else text
        assert begins.startswith(found.removeprefix("… ").removesuffix(" …")), (text, found)


@pytest.mark.parametrize("length", [100_000, 1_000_000])
def test_a_long_text_of_one_word_takes_no_longer_than_reading_it(length):
    text = "sort " * (length // 5)
    started = time.perf_counter()
    found = snippet(text, "sort")
    assert time.perf_counter() - started < 0.5
    assert found.startswith("sort sort")
    assert len(found) <= SNIPPET + 4


def test_a_letter_that_grows_in_lower_case_moves_nothing():
    assert snippet("İ " * 200 + "needle " + "hay " * 100, "a needle").startswith("… needle hay")
