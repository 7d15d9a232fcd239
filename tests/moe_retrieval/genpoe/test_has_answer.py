"""Answers in passages by DPR's rule: hand-made cases, and a walk over the characters and their categories."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_retrieval.genpoe.has_answer import has_answer, words

CASES = [
    ("The U.S. Congress met in 1998.", "1998", True),
    ("The U.S. Congress met in 1998.", "us congress", False),  # U . S . are four words
    ("The U.S. Congress met in 1998.", "u.s. congress", True),
    ("It opened in 19985.", "1998", False),
    ("Café society", "cafe", False),  # the accent is a part of the word
    ("Café society", "cafe\u0301", True),
    ("Cafe\u0301 society", "CAFÉ", True),
    ("James  Bond\nreturns", "james bond", True),
    ("Bond, James", "James Bond", False),
    ("the don't case", "don't", True),
    ("the dont case", "don't", False),
    ("a 16-bit bus", "16 bit", False),
    ("a 16-bit bus", "16 - bit", True),
    ("東京タワー", "東京", False),  # one run of letters
    ("東京 タワー", "東京", True),
    ("x² and ½", "x²", True),
    ("end", "the end", False),
    ("", "x", False),
    ("anything", "", False),
    ("anything", " \t", False),
]


@pytest.mark.parametrize("text, answer, expected", CASES)
def test_cases_made_by_hand(text, answer, expected):
    assert has_answer(text, [answer]) is expected
    assert has_answer(text, ["not there", answer]) is expected


def test_words():
    assert words("Don't  PANIC\x00: 42%\u200b!") == ["don", "'", "t", "panic", ":", "42", "%", "!"]
    assert words("") == []


def walked(text):
    """The words of a text, character by character."""
    found, run = [], ""
    for sign in unicodedata.normalize("NFD", text) + " ":
        kind = unicodedata.category(sign)[0]
        if kind in "LNM":
            run += sign
            continue
        if run:
            found.append(run.lower())
        run = ""
        if kind not in "ZC":
            found.append(sign.lower())
    return found


# Of the characters that every version of Unicode at hand has in one category.
SIGNS = st.characters(codec="utf-8", max_codepoint=0x2FFF, exclude_categories=("Cn", "Cs"))


@given(st.text(SIGNS | st.sampled_from("ab .'é\u0301")))
def test_words_are_runs_of_letters_digits_and_marks(text):
    assert words(text) == walked(text)


@given(st.lists(st.sampled_from(["a", "b", "c", "A", ".", "é"])), st.lists(st.sampled_from(["a", "b", "c", "B", "."])))
def test_an_answer_is_a_row_of_words(text, answer):
    among, wanted = walked(" ".join(text)), walked(" ".join(answer))
    rows = [among[place : place + len(wanted)] for place in range(len(among))]
    assert has_answer(" ".join(text), [" ".join(answer)]) == (bool(wanted) and wanted in rows)
