"""Several data sets in one text: names with commas between, each perhaps with a weight behind a colon."""

import re
from pathlib import Path
from typing import NamedTuple

from moe_retrieval.errors import InputError

WEIGHTED = re.compile(r"(.+):(\d+(?:\.\d+)?)")


class Named(NamedTuple):
    name: str
    weight: float = 1.0
    """How often its pairs are trained on in an epoch."""


def split_names(text: str) -> list[Named]:
    """
    >>> split_names("docs,scifact:2")
    [Named(name='docs', weight=1.0), Named(name='scifact', weight=2.0)]
    """
    if Path(text).exists():  # of a path, commas and colons are a part
        return [Named(text)]
    found = [_weighted(part.strip()) for part in text.split(",")]
    names = [named.name for named in found]
    for named in found:
        if not named.name:
            raise InputError(f"--dataset: expected names with commas between, like docs,scifact:2, got {text!r}")
        if not named.weight:
            raise InputError(f"--dataset: the weight of {named.name} must be above 0")
        if names.count(named.name) > 1:
            raise InputError(f"--dataset: {named.name} comes twice: {named.name}:2 trains on it twice as often")
    return found


def _weighted(part: str) -> Named:
    match = None if Path(part).exists() else WEIGHTED.fullmatch(part)
    return Named(match[1], float(match[2])) if match else Named(part)
