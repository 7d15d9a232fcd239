"""The page: one HTML file that loads nothing, with its plots, its texts and the library that draws them inside."""

import gzip
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from functools import singledispatch
from html import escape
from pathlib import Path
from typing import Any

from moe_retrieval.reporting.assembly import Report
from moe_retrieval.reporting.interactive import figure, plain
from moe_retrieval.reporting.library import INSTALL
from moe_retrieval.reporting.part import Browser, Choice, Fold, Lead, Missing, Part, Table, Text
from moe_retrieval.reporting.plots import Map, Plot, file_name
from moe_retrieval.reporting.sources import as_json

HERE = Path(__file__).parent

PLOTS = "plots"
"""The folder of the pictures, beside the page"""

WORDS = ' class="words"'

MOST_OF_A_NUMBER = 40
"""Characters: those of several seeds are a list"""

NOTHING_FROM_ELSEWHERE = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
)
"""By which a browser keeps the page from loading or sending anything, whatever stands in its texts"""


def page(report: Report, library: str | None, pictures: Mapping[str, bytes]) -> bytes:
    """`library` is plotly.js; where it is None, the pictures (PNG by the names of the plots) stand in its place."""
    sections = [_section(part, {} if library else pictures) for part in report.parts]
    sections += [_missing(report.missing)] if report.missing else []
    parts = {"content": as_json(_content(report, interactive=library is not None))}
    if library is not None:
        parts["library"] = library.encode()
    packed = [f'<script type="text/plain" id="{name}">{pack(content)}</script>' for name, content in parts.items()]
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{NOTHING_FROM_ELSEWHERE}">',
        f"<title>{escape(report.title)}</title>",
        f"<style>\n{(HERE / 'page.css').read_text('utf-8')}</style>",
        _header(report),
        "<main>",
        *sections,
        "</main>",
        _footer(report, interactive=library is not None),
        *packed,
        f"<script>\n{(HERE / 'page.js').read_text('utf-8')}</script>",
        "</html>",
    ]
    return ("\n".join(lines) + "\n").encode()


def pack(content: bytes) -> str:
    """A third of the size, and no sign in it that HTML would read."""
    return b64encode(gzip.compress(content, mtime=0)).decode()


def _content(report: Report, interactive: bool) -> dict[str, Any]:
    """What the page's program reads."""
    browsers = [item.content for part in report.parts for item in part.items if isinstance(item, Browser)]
    content: dict[str, Any] = {"figures": {}, "labels": {}, "browsers": browsers}
    for plot in report.plots() if interactive else []:
        content["figures"][plot.name] = figure(plot)
        if isinstance(plot, Map):
            content["labels"][plot.labels.name] = [plain(text) for text in plot.labels.texts]
    return content


# What stands around.


def _header(report: Report) -> str:
    links = "".join(f'<a href="#{file_name(part.title)}">{escape(part.title)}</a>' for part in report.parts)
    schemes = "".join(
        f'<label><input type="radio" name="scheme" value="{value}"{" checked" if not value else ""}>{name}</label>'
        for value, name in (("", "auto"), ("light", "light"), ("dark", "dark"))
    )
    return (
        f'<header><div class="top"><div><h1>{escape(report.title)}</h1><p class="about">{escape(report.about)}</p>'
        f'</div><fieldset class="scheme"><legend>Colours</legend>{schemes}</fieldset></div>'
        f'<nav aria-label="Parts">{links}</nav>'
        '<noscript><p class="note">Plots and queries need JavaScript; the tables do not.</p></noscript></header>'
    )


def _missing(missing: Sequence[Missing]) -> str:
    items = []
    for each in missing:
        command = f": <code>{escape(each.command)}</code>" if each.command else ""
        items.append(f"<li><b>{escape(each.title)}</b>: {escape(each.why)}{command}</li>")
    return f'<section id="not-here"><h2>Not on this page</h2><ul class="missing">{"".join(items)}</ul></section>'


def _footer(report: Report, interactive: bool) -> str:
    told = [f"Each plot lies beside this page, in <code>{PLOTS}/</code>, as PNG and SVG."]
    if not interactive:
        told.append(f"The plots are pictures; with <code>{escape(INSTALL)}</code> one can look into them.")
    if report.command:
        told.append(f"What was compared: <code>{escape(report.command)}</code>")
    return f"<footer>{''.join(f'<p>{each}</p>' for each in told)}</footer>"


# Parts and items.


def _section(part: Part, pictures: Mapping[str, bytes]) -> str:
    items = "\n".join(_item(item, pictures) for item in part.items)
    return f'<section id="{file_name(part.title)}">\n<h2>{escape(part.title)}</h2>\n{items}\n</section>'


@singledispatch
def _item(item: Any, pictures: Mapping[str, bytes]) -> str:
    """With pictures, they are what a choice is between; without, plots that a library draws."""
    raise TypeError(f"nothing is known of how to write a {type(item).__name__}")


@_item.register
def _(item: Lead, pictures: Mapping[str, bytes]) -> str:
    return f'<p class="lead">{escape(item.text)}</p>'


@_item.register
def _(item: Text, pictures: Mapping[str, bytes]) -> str:
    return f"<p>{escape(item.text)}</p>"


@_item.register
def _(item: Table, pictures: Mapping[str, bytes]) -> str:
    filled = {title: list(cells) for title, cells in item.columns.items() if any(cells)}
    are_words = [number > 0 and any(map(_is_words, cells)) for number, cells in enumerate(filled.values())]
    titles = "".join(_cell("th", title, words, ' scope="col"') for title, words in zip(filled, are_words))
    rows = "".join(f"<tr>{''.join(_row(cells, are_words))}</tr>" for cells in zip(*filled.values()))
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="table">'
        f"<table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(cells: Sequence[str], are_words: Sequence[bool]) -> Iterator[str]:
    yield _cell("th", cells[0], False, ' scope="row"')
    for cell, words in zip(cells[1:], are_words[1:]):
        yield _cell("td", cell, words)


def _is_words(cell: str) -> bool:
    """And no number, which stands at the right."""
    return cell[:1].isalpha() or len(cell) > MOST_OF_A_NUMBER


def _cell(tag: str, text: str, words: bool, more: str = "") -> str:
    return f"<{tag}{more}{WORDS if words else ''}>{escape(text)}</{tag}>"


@_item.register
def _(item: Choice, pictures: Mapping[str, bytes]) -> str:
    options = "".join(f'<option value="{plot.name}">{escape(plot.title)}</option>' for plot in item.plots)
    only = len(item.plots) == 1
    head = f"<h3>{escape(item.plots[0].title)}</h3>" if only else (
        f'<label class="pick">{escape(item.title)} <select>{options}</select></label>'
    )  # fmt: skip
    inside = "".join(map(_picture, item.plots, [pictures[plot.name] for plot in item.plots])) if pictures else ""
    first = f' data-plot="{item.plots[0].name}"'
    note = f"<figcaption>{escape(item.note)}</figcaption>" if item.note else ""
    return f'<figure>{head}<div class="scroll"><div class="plot"{first}>{inside}</div></div>{note}</figure>'


def _picture(plot: Plot, png: bytes) -> str:
    source = f"data:image/png;base64,{b64encode(png).decode()}"
    return f'<img data-name="{plot.name}" alt="{escape(plot.title)}" src="{source}">'


@_item.register
def _(item: Browser, pictures: Mapping[str, bytes]) -> str:
    return f'<div class="browser"></div><p class="note">{escape(item.note)}</p>'


@_item.register
def _(item: Fold, pictures: Mapping[str, bytes]) -> str:
    inside = "\n".join(_item(each, pictures) for each in item.items)
    return f"<details><summary>{escape(item.title)}</summary>\n{inside}\n</details>"
