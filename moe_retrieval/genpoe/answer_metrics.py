"""What a predicted answer is worth: exact match and token F1 as SQuAD has them, the best over all answers.

Answers are compared in lower case, without ASCII punctuation, without articles, with single spaces. Where nothing is
left of either, both measures are 1 if nothing is left of the other, and else 0, as in SQuAD 2.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from string import punctuation

ARTICLE = re.compile(r"\b(?:a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", punctuation)


def normalize(answer: str) -> str:
    """
    >>> normalize("The  U.S. an' A")
    'us'
    """
    return " ".join(ARTICLE.sub(" ", answer.lower().translate(WITHOUT_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Iterable[str]) -> float:
    return _best(_equal, prediction, answers)


def token_f1(prediction: str, answers: Iterable[str]) -> float:
    """
    >>> token_f1("in May 1998", ["May 1998", "1998"])
    0.8
    """
    return _best(_f1, prediction, answers)


def _best(measure: Callable[[str, str], float], prediction: str, answers: Iterable[str]) -> float:
    found = normalize(prediction)
    return max((measure(found, normalize(answer)) for answer in answers), default=0.0)


def _equal(prediction: str, answer: str) -> float:
    return float(prediction == answer)


def _f1(prediction: str, answer: str) -> float:
    found, wanted = prediction.split(), answer.split()
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted))
