"""docs/kernels.md has the tables that docs/roofline.py prints, and every figure in them."""

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def tables(lines: list[str]) -> list[list[str]]:
    """Runs of lines that begin with a bar."""
    found: list[list[str]] = [[]]
    for line in lines:
        if line.startswith("|"):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def test_the_document_has_what_the_script_prints():
    done = subprocess.run([sys.executable, DOCS / "roofline.py"], capture_output=True, text=True, check=True)
    printed = tables(done.stdout.splitlines())
    assert [len(table) for table in printed] == [8, 11, 8, 7, 6, 8, 11, 4]
    document = (DOCS / "kernels.md").read_text()
    assert tables(document.splitlines()) == printed
    titles = [line for line in done.stdout.splitlines() if line and not line.startswith("|")]
    assert len(titles) == 7
    assert all(f"**{title}**" in document for title in titles)
