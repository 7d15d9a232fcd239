"""A page of figures: what is between the marks is replaced, and nothing else."""

import pytest

from bench.reports.page import END, begin, write_page
from moe_retrieval.errors import InputError


def test_what_is_between_the_marks_is_replaced(tmp_path):
    page, mark = tmp_path / "page.md", begin("bench.this")
    page.write_text(f"before\n{mark}\nold\n{END}\nafter\n")
    for _ in range(2):
        write_page(page, "bench.this", "new")
        assert page.read_text() == f"before\n{mark}\n\nnew\n\n{END}\nafter\n"
    with pytest.raises(InputError, match=r"expected the marks <!-- python -m bench\.other -->"):
        write_page(page, "bench.other", "new")
    page.write_text(f"before\n{mark}\n")
    with pytest.raises(InputError, match="expected the marks"):
        write_page(page, "bench.this", "new")
