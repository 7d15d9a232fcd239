"""The page of figures has the marks that they go between."""

from bench.genpoe import PAGE
from bench.reports.page import END, begin


def test_the_page_has_the_marks():
    text = PAGE.read_text("utf-8")
    assert text.index(begin("bench.genpoe")) < text.index(END)
