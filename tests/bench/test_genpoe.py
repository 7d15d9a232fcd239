"""The page of figures: what is between the marks is replaced, and nothing else."""

import pytest

from bench.genpoe import BEGIN, END, PAGE, write_page
from moe_retrieval.errors import InputError


def test_what_is_between_the_marks_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        write_page(page, "new")
        assert page.read_text() == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    page.write_text(f"before\n{BEGIN}\n")
    with pytest.raises(InputError, match="expected the marks"):
        write_page(page, "new")


def test_the_page_has_the_marks():
    text = PAGE.read_text("utf-8")
    assert text.index(BEGIN) < text.index(END)
