"""Pages in a real browser, headless: what it makes of them, and what it complains of."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 120
"""Seconds"""


class Seen(NamedTuple):
    dom: str
    """After the page's own program has run"""
    complaints: list[str]
    """What stands in the console: errors, warnings, what the page's policy kept it from"""


def program() -> str:
    """The browser; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium here: on Debian, apt-get install chromium")
    return found


def look(page: Path, *flags: str, size: tuple[int, int] = (1200, 900)) -> Seen:
    command = [
        program(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=30000",
        f"--user-data-dir={page.parent / 'profile'}", f"--window-size={size[0]},{size[1]}", *flags, "--dump-dom",
        page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    return Seen(done.stdout, re.findall(r"CONSOLE[^\n]*", done.stderr))
