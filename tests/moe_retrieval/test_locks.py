"""One process at a time writes to a folder, and nothing that died keeps the next one out."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from moe_retrieval.errors import InputError
from moe_retrieval.locks import NAME, locked

HOLDER = """
import sys
from pathlib import Path
from moe_retrieval.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process, which holds the lock of a folder until its input ends."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_in_use_is_refused_by_whatever_name(tmp_path, holder):
    (tmp_path / "sub").mkdir()
    (tmp_path.parent / f"{tmp_path.name}-link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "sub" / "..", tmp_path.parent / f"{tmp_path.name}-link"):
        with pytest.raises(InputError, match=f"is in use by process {holder.pid}: wait for its end"), locked(folder):
            pass
    holder.communicate()
    with locked(tmp_path):
        pass
    assert not (tmp_path / NAME).exists()


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert (tmp_path / NAME).read_text().startswith(f"{holder.pid} ")
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("content", ["1 here\n", "OWN here\n", "4711 another.host\n", "", "\xff" * 400])
def test_what_a_file_that_was_left_says_locks_nothing(content, tmp_path):
    (tmp_path / NAME).write_text(content.replace("OWN", str(os.getpid())))
    with locked(tmp_path):
        assert (tmp_path / NAME).read_text().split()[0] == str(os.getpid())


def test_of_many_that_try_one_holds(tmp_path):
    """Each tries until it had the folder a few times: two at a time would see each other's mark."""
    inside, clashes = [], []

    def work(name):
        turns = 5
        while turns:
            try:
                with locked(tmp_path):
                    inside.append(name)
                    time.sleep(0.001)  # without it a thread is through before the next one runs
                    clashes.extend(other for other in inside if other != name)
                    inside.remove(name)
                    turns -= 1
            except InputError:
                pass

    threads = [threading.Thread(target=work, args=[name]) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes


def test_where_a_system_has_no_locks_a_word_says_so(tmp_path):
    """As on Windows, which has neither this module nor these functions."""
    without = "import os, sys; sys.modules['fcntl'] = None; del os.pread, os.pwrite"
    command = [sys.executable, "-c", f"{without}\n{HOLDER}", str(tmp_path)]
    done = subprocess.run(command, input="", capture_output=True, text=True)
    assert done.stdout == "held\n", done.stderr
    assert f"{tmp_path}: there are no locks here; nothing keeps a second process from writing" in done.stderr


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=f"^cannot write to {folder}: "), locked(folder):
            pass
