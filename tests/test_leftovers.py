"""The check that ends every session of tests: it must see what it is there to see."""

import os
import re
import signal
import subprocess
import sys

import pytest

from tests import leftovers

pytestmark = pytest.mark.skipif(not leftovers.PROC.exists(), reason="processes are read from Linux's /proc")
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
QUIET = "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL"  # else who reads them waits for this one
PARENT = f"import subprocess, sys; print(subprocess.Popen(sys.argv[1:], {QUIET}).pid)"


@pytest.fixture
def value(monkeypatch):
    monkeypatch.setenv(leftovers.NAME, "")  # the session's own comes back
    return leftovers.mark()


def test_a_child_and_an_orphan_are_seen_until_they_end(value):
    child = subprocess.Popen(SLEEP)
    parent = subprocess.run([sys.executable, "-c", PARENT, *SLEEP], capture_output=True, text=True, check=True)
    orphan = int(parent.stdout)
    try:
        assert set(leftovers.outliving(value, seconds=0.3)) == {child.pid, orphan}
    finally:
        child.kill()
        os.kill(orphan, signal.SIGKILL)
        child.wait()
    assert not leftovers.outliving(value)


def test_a_fork_is_seen(value):
    """Its environment is that with which its parent was started."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        assert list(leftovers.outliving(value, seconds=0.3)) == [pid]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert not leftovers.outliving(value)


def test_what_was_started_before_the_mark_is_another_s(monkeypatch):
    monkeypatch.setenv(leftovers.NAME, "")
    child = subprocess.Popen(SLEEP)
    try:
        assert not leftovers.alive(leftovers.mark())
    finally:
        child.kill()
        child.wait()


@pytest.mark.slow
def test_a_session_that_leaves_one_fails(tmp_path):
    (tmp_path / "test_it.py").write_text(f"import subprocess\n\ndef test_it():\n    subprocess.Popen({SLEEP!r})\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "--rootdir", str(tmp_path), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert run.returncode == 1
    said = re.search(r"tests left processes behind:\n.*?(\d+): .*sleep\(60\)", run.stdout)
    assert said, run.stdout
    os.kill(int(said[1]), signal.SIGKILL)
