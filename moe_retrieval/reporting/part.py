"""A part of the page: what it is made of, and what stands in its place where its data is not there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from moe_retrieval.reporting.plots import Plot


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Lead(NamedTuple):
    """A sentence that is read first."""

    text: str


class Table(NamedTuple):
    """Columns by title, of cells; the first one names the rows. A column that is empty is left out."""

    columns: Mapping[str, Sequence[str]]


class Choice(NamedTuple):
    """Plots of one kind, of which one is seen at a time."""

    title: str
    plots: Sequence[Plot]
    note: str = ""


class Browser(NamedTuple):
    """Queries to look through: what the page's program needs of them."""

    content: dict[str, Any]
    note: str = ""


class Fold(NamedTuple):
    """Something to open."""

    title: str
    items: "Sequence[Text | Table]"


Item = Text | Lead | Table | Choice | Browser | Fold


@dataclass(frozen=True)
class Part:
    title: str
    items: Sequence[Item]


@dataclass(frozen=True)
class Missing:
    title: str
    why: str
    command: str | None = None
    """What makes it"""
