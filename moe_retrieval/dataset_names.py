"""Several data sets in one text: names with commas between, each perhaps with a weight behind a colon."""

import re
from collections.abc import Sequence
from os.path import exists
from typing import NamedTuple

from moe_retrieval.errors import InputError

HUB = "hf:"
"""What the names of data sets of the hub begin with."""

WEIGHTED = re.compile(r"(.+):(\d+(?:\.\d+)?)")

MOST = 1000
"""The largest weight: how often its pairs are in a list in memory"""


class Named(NamedTuple):
    name: str
    weight: float = 1.0
    """How often its pairs are trained on in an epoch."""


def split_names(text: str) -> list[Named]:
    """
    >>> split_names("docs,scifact:2")
    [Named(name='docs', weight=1.0), Named(name='scifact', weight=2.0)]
    """
    if exists(text):  # of a path, commas and colons are a part
        return [Named(text)]
    found = [_weighted(part.strip()) for part in text.split(",")]
    names = [named.name for named in found]
    for named in found:
        if not named.name:
            raise InputError(f"--dataset: expected names with commas between, like docs,scifact:2, got {text!r}")
        if not 0 < named.weight <= MOST:
            raise InputError(f"--dataset: the weight of {named.name} must be above 0 and at most {MOST}")
        if names.count(named.name) > 1:
            raise InputError(f"--dataset: {named.name} comes twice: {named.name}:2 trains on it twice as often")
    return found


def check_columns(named: Sequence[Named], columns: str | None) -> None:
    """Raises where `columns` would change nothing."""
    if columns is not None and not any(each.name.startswith(HUB) for each in named):
        names = ",".join(each.name for each in named)
        raise InputError(f"--columns is for data sets of the hub, {HUB}OWNER/NAME; got --dataset {names}")


def _weighted(part: str) -> Named:
    match = None if exists(part) else WEIGHTED.fullmatch(part)
    return Named(match[1], float(match[2])) if match else Named(part)
