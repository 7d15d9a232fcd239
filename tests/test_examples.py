"""The examples run as they stand, in a process of their own, and do what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(name):
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / name],
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def numbers(pattern, text):
    return [float(number) for number in re.findall(pattern, text)]


def test_every_example_is_run_and_short():
    assert [path.name for path in EXAMPLES] == ["layer.py", "moe_decoder.py", "sbmoe_embeddings.py", "upcycle_bert.py"]
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) <= 40
        assert f"python examples/{path.name}" in path.read_text()


def test_layer():
    losses = numbers(r"loss ([\d.]+)", run("layer.py"))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_upcycle_bert():
    pytest.importorskip("transformers")
    printed = run("upcycle_bert.py")
    assert numbers(r"logits changed by (\S+)", printed)[0] < 1e-5
    assert numbers(r"accuracy ([\d.]+)", printed)[0] > 0.9


@pytest.mark.slow
def test_moe_decoder():
    pytest.importorskip("transformers")
    printed = run("moe_decoder.py")
    assert "same text: True" in printed
    assert numbers(r"differ by (\S+)", printed)[0] < 1e-4
    assert numbers(r"gradient of the experts ([\d.]+)", printed)[0] > 0


def test_sbmoe_embeddings():
    before, after = numbers(r"recall@1 \w+: +([\d.]+)", run("sbmoe_embeddings.py"))
    assert after > before + 0.05
