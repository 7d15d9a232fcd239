"""The tour runs from its first cell to its last, as a reader would run it, without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_retrieval.presets import FROM_SCRATCH

ROOT = Path(__file__).parents[1]
TOUR = ROOT / "notebooks" / "tour.ipynb"


def code_cells():
    notebook = json.loads(TOUR.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_it_is_a_notebook_without_anybody_s_output():
    notebook = json.loads(TOUR.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    for cell in notebook["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.slow
def test_it_runs_from_end_to_end(tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg",
        "TRITON_INTERPRET": "0", "MOE_RETRIEVAL_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path),
    }  # fmt: skip
    command = [sys.executable, "-c", "\n".join(code_cells())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    for words in (
        "wordpiece ",
        "bpe ",
        "guesses ",
        "dense ",
        "moe ",
        "infonce ",
        "triplet ",
        "contrastive ",
        "Spearman",
    ):
        assert words in said, words
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.startswith(("dense  ", "moe  "))}
    parameters = {variant: int(rows[variant][-2].replace(",", "")) for variant in ("dense", "moe")}
    assert parameters["moe"] > parameters["dense"]
    for variant in ("dense", "moe"):
        assert float(rows[variant][0]) > 0.1  # NDCG@10; random weights have a tenth of that
    (log,) = tmp_path.glob("tmp*/pretrained/log.jsonl")
    losses = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_its_full_size_is_that_of_the_preset():
    (first, *_) = code_cells()
    assert "SHAPE = {name: FROM_SCRATCH[name] for name in SHAPE}" in first
    assert set(FROM_SCRATCH) >= {"hidden", "num_layers", "heads", "ff", "vocab_size"}
