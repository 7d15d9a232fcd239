"""Figures on a page of the documentation: between two marks, which name the command that puts them there."""

from pathlib import Path

from moe_retrieval.errors import InputError

END = "<!-- end -->"


def begin(module: str) -> str:
    """
    >>> begin("bench.genpoe")
    '<!-- python -m bench.genpoe -->'
    """
    return f"<!-- python -m {module} -->"


def write_page(path: Path, module: str, text: str) -> None:
    """Between the marks, in place of what was there."""
    page, mark = path.read_text("utf-8"), begin(module)
    head, found, rest = page.partition(mark)
    _, ended, tail = rest.partition(END)
    if not found or not ended:
        raise InputError(f"{path}: expected the marks {mark} and {END}, between which the table goes")
    path.write_text(f"{head}{mark}\n\n{text}\n\n{END}{tail}", "utf-8")
