"""Exact match and F1: cases made by hand, among them those of SQuAD's evaluation."""

import pytest

from moe_retrieval.genpoe.answer_metrics import exact_match, normalize, token_f1

CASES = [
    ("the Eiffel Tower!", ["Eiffel tower"], 1.0, 1.0),
    ("May 16th, 1931", ["May 16th 1931"], 1.0, 1.0),
    ("U.S.", ["us"], 1.0, 1.0),
    ("in May 1998", ["1998", "May 1998"], 0.0, 0.8),
    ("1998", ["May 1998", "the year 1998"], 0.0, 2 / 3),
    ("a b b c", ["b b b d"], 0.0, 2 * 2 / 7),  # "a" is an article: b b c, of which two b are shared
    ("London", ["Paris"], 0.0, 0.0),
    ("", ["Paris"], 0.0, 0.0),
    ("The", ["a"], 1.0, 1.0),  # nothing is left of either
    ("the", ["Paris"], 0.0, 0.0),
    ("Beyoncé", ["Beyonce"], 0.0, 0.0),
    ("anthem", ["them"], 0.0, 0.0),  # an article is a word
    ("x", [], 0.0, 0.0),
]


@pytest.mark.parametrize("prediction, answers, match, f1", CASES)
def test_cases_made_by_hand(prediction, answers, match, f1):
    assert exact_match(prediction, answers) == match
    assert token_f1(prediction, answers) == pytest.approx(f1)


def test_what_normalization_leaves():
    assert normalize("  An  A-Z (of) the\tTheatre ") == "az of theatre"
    assert normalize("«Été»") == "«été»"  # other signs than ASCII's stay, as in SQuAD's own
