"""The page as a file: whole in itself, with what others wrote as text."""

import gzip
import json
import re
import tomllib
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import pytest

from moe_retrieval.reporting.assembly import Report, assemble, with_own_names
from moe_retrieval.reporting.library import plotly_js
from moe_retrieval.reporting.page import pack, page
from moe_retrieval.reporting.part import Browser, Choice, Fold, Lead, Missing, Part, Table, Text
from moe_retrieval.reporting.plots import Cloud, Labels, Map, Value, Values
from moe_retrieval.reporting.sources import read_sources
from tests.moe_retrieval.reporting.made import comparison, system, write

EVIL = "</script><script>document.title='x'</script><b>&"
BARS = Values("bars", f"Cost {EVIL}", "ms", [Value(EVIL, 2.0, 0)])
MAP = Map("map", "Map", [0.0], [0.0], Labels("m", [EVIL]), [Cloud("pond", [0])])


class Tags(HTMLParser):
    """What a browser would see."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["script"] and self.open[-1:] != ["style"]:
            self.texts.append(data)


def a_report(*items, missing=()):
    return Report(f"title {EVIL}", f"about {EVIL}", f"command {EVIL}", [Part(f"Part {EVIL}", items)], missing)


ALL = (
    Lead(EVIL), Text(EVIL), Table({"": [EVIL], "value": ["1.0"], "none": [""]}), Fold(EVIL, [Text(EVIL)]),
    Choice(EVIL, [BARS, MAP], EVIL), Browser({"systems": [EVIL], "queries": []}, EVIL),
)  # fmt: skip
PICTURES = {"bars": b"png of bars", "map": b"png of map"}


def content_of(text, name="content"):
    (packed,) = re.findall(rf'<script type="text/plain" id="{name}">([^<]*)</script>', text)
    return gzip.decompress(b64decode(packed))


@pytest.mark.parametrize("library", [None, f"drawing {EVIL}"])
def test_what_others_wrote_is_text(library):
    text = page(a_report(*ALL, missing=[Missing(EVIL, EVIL, EVIL)]), library, PICTURES).decode()
    found = Tags(text)
    assert not found.open
    assert found.texts.count(EVIL) >= 8
    assert len([tag for tag, _ in found.tags if tag == "script"]) == (2 if library is None else 3)
    assert "<script>document" not in text


@pytest.mark.parametrize("library", [None, "drawing"])
def test_it_loads_nothing(library):
    found = Tags(page(a_report(*ALL), library, PICTURES).decode())
    for tag, attributes in found.tags:
        assert tag not in ("link", "iframe", "object", "base")
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:", "#")), (tag, attributes)
    policy = dict(found.tags[[tag for tag, _ in found.tags].index("meta") + 2][1])
    assert policy["content"].startswith("default-src 'none'; ")
    assert "http" not in policy["content"]


def test_with_the_library_the_figures_are_inside_and_without_it_the_pictures():
    text = page(a_report(*ALL), "drawing", PICTURES).decode()
    content = json.loads(content_of(text))
    assert list(content["figures"]) == ["bars", "map"]
    assert content["labels"]["m"] == ["&lt;/script&gt;&lt;script&gt;document.title='x'&lt;/script&gt;&lt;b&gt;&amp;"]
    assert content["browsers"] == [{"systems": [EVIL], "queries": []}]
    assert content_of(text, "library") == b"drawing"
    assert "<img" not in text
    text = page(a_report(*ALL), None, PICTURES).decode()
    assert json.loads(content_of(text))["figures"] == {}
    shown = [attributes for tag, attributes in Tags(text).tags if tag == "img"]
    assert [b64decode(each["src"].partition(",")[2]) for each in shown] == list(PICTURES.values())
    assert "pip install" in text


def test_a_table_leaves_out_what_is_empty():
    text = page(a_report(Table({"": ["a"], "value": ["1"], "of no use here": [""]})), None, {}).decode()
    assert '<th scope="col">value</th>' in text
    assert "of no use here" not in text


def test_words_stand_at_the_left_and_numbers_at_the_right():
    text = page(a_report(Table({"": ["a"], "number": ["0.5 ± 0.1"], "side": ["query"]})), None, {}).decode()
    assert '<th scope="col">number</th><th scope="col" class="words">side</th>' in text
    assert '<th scope="row">a</th><td>0.5 ± 0.1</td><td class="words">query</td>' in text


def test_what_is_missing_is_named_with_its_command():
    text = page(a_report(missing=[Missing("Sweep", "nothing was swept", "do it")]), None, {}).decode()
    assert "<li><b>Sweep</b>: nothing was swept: <code>do it</code></li>" in text
    assert "Not on this page" not in page(a_report(), None, {}).decode()


def test_packing_is_smaller_and_the_same_again():
    content = b"the same words " * 1000
    assert gzip.decompress(b64decode(pack(content))) == content
    assert len(pack(content)) < len(content) / 10
    assert pack(content) == pack(content)


def test_the_library_is_of_a_bearable_size():
    """docs/report.md says so."""
    pytest.importorskip("plotly", reason="plots are pictures without plotly")
    assert len(pack(plotly_js().encode())) < 2.5e6


def test_no_two_plots_have_one_name():
    twice = [Part("a", [Choice("", [BARS, BARS])]), Part("b", [Text("x"), Choice("", [BARS])])]
    names = [plot.name for part in with_own_names(twice) for item in part.items if isinstance(item, Choice)
             for plot in item.plots]  # fmt: skip
    assert names == ["bars", "bars-2", "bars-3"]


def test_a_folder_with_little_gives_a_page_that_says_so(tmp_path):
    folder = write(tmp_path, "comparison.json", comparison({"dense": system(0.5)}))
    made = assemble(read_sources(folder), 10, None, None)
    assert [part.title for part in made.parts] == ["Result", "By how far down one looks"]
    assert [missing.title for missing in made.missing] == [
        "Sweep", "What the experts do", "Balance over training", "Where embeddings lie", "Costs", "Training",
        "Query by query",
    ]  # fmt: skip
    assert all(missing.command for missing in made.missing)
    assert made.title == "gardens, test split"
    assert "content hash 0123456789abcdef" in made.about


def test_of_a_single_run_and_of_an_analysis(tmp_path):
    run = write(tmp_path / "main", "metrics.json", {"NDCG@10": 0.5, "run": {"dataset": "docs", "split": "test"}})
    made = assemble(read_sources(run), 10, None, None)
    assert (made.title, made.about, made.command) == ("main", "dataset docs, split test", None)
    assert page(made, None, {})


def test_the_program_and_the_style_are_part_of_the_distribution():
    root = Path(__file__).parents[3]
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    used = {f"*{path.suffix}" for path in (root / "moe_retrieval" / "reporting").iterdir() if path.suffix != ".py"}
    assert used - {"*"} <= set(data)
