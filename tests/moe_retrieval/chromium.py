"""Pages in a real browser, headless: what it makes of them, and what it complains of."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any, NamedTuple

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 120
"""Seconds"""

FRAME = """<!doctype html><iframe src="{page}" width="{width}" height="{height}"></iframe><pre id="told"></pre><script>
addEventListener("message", (event) => {{ document.getElementById("told").textContent = event.data; }});
</script>"""
"""A window cannot be as narrow as a phone; a frame can. What the page posts to its parent is written down."""


class Seen(NamedTuple):
    told: Any
    """What the page posted to its parent, as JSON; None if nothing"""
    complaints: list[str]
    """What stands in the console: errors, warnings, what the page's policy kept it from"""


def program() -> str:
    """The browser; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium here: on Debian, apt-get install chromium")
    return found


def look(page: Path, width: int, height: int) -> Seen:
    frame = page.with_name(f"frame-of-{page.name}")
    frame.write_text(FRAME.format(page=page.as_uri(), width=width, height=height))
    command = [
        program(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=30000",
        f"--user-data-dir={page.parent / 'profile'}", f"--window-size={width + 100},{height + 100}", "--dump-dom",
        frame.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    (told,) = re.findall(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    return Seen(json.loads(unescape(told)) if told else None, re.findall(r"CONSOLE[^\n]*", done.stderr))
