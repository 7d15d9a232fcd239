"""What can be drawn, as numbers and words. How it looks is said twice: in `interactive` and in `drawing`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Plot:
    name: str
    """That of its files; another one for each plot of a page"""
    title: str


class Line(NamedTuple):
    name: str
    color: int
    """Its place in the palette"""
    x: Sequence[float]
    y: Sequence[float | None]
    """None is a gap"""
    spread: Sequence[float] | None = None


@dataclass(frozen=True)
class Lines(Plot):
    x_title: str
    y_title: str
    lines: Sequence[Line]
    ticks: Mapping[float, str] | None = None
    """Where the axis has marks, and what stands there; None is wherever the one who draws it likes"""
    is_log: bool = False
    """The axis of x"""


class Value(NamedTuple):
    name: str
    value: float
    color: int
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Values(Plot):
    """One for each name: bars from zero, or dots with their intervals."""

    value_title: str
    values: Sequence[Value]
    are_bars: bool = True


@dataclass(frozen=True)
class Heatmap(Plot):
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[float | None]]
    cell_title: str
    limits: tuple[float, float]
    """Where the colours begin and end"""
    form: str = ".2f"
    """How a number is written"""
    is_signed: bool = False
    """Below zero is another colour than above"""


class Cloud(NamedTuple):
    name: str
    places: Sequence[int]
    """Of its points in the map"""


class Labels(NamedTuple):
    """What stands at each point: of several maps the same, so that a page has it once."""

    name: str
    texts: Sequence[str]


@dataclass(frozen=True)
class Map(Plot):
    x: Sequence[float]
    y: Sequence[float]
    labels: Labels
    clouds: Sequence[Cloud]


def file_name(*words: str) -> str:
    """
    >>> file_name("Load", "encoder.blocks.1.ffn", "query")
    'load-encoder-blocks-1-ffn-query'
    """
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")
