"""What `make` would install: FAISS for a GPU where there is one."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    "status,flags,extra",
    [(0, [], "gpu"), (9, [], "cpu"), (0, ["FAISS=cpu"], "cpu")],
    ids=["a GPU", "a driver without one", "told"],
)
def test_the_extra_is_by_what_is_there(status, flags, extra, tmp_path):
    probe = tmp_path / "nvidia-smi"
    probe.write_text(f"#!/bin/sh\necho 'GPU 0: a stand-in'\nexit {status}\n")
    probe.chmod(0o755)
    command = ["make", "--dry-run", "--always-make", *flags, ".venv/installed"]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.defpath}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if " -e " in line]
    assert f" -e '.[{extra}," in line
