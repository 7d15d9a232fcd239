"""`make train` on two processes, seconds long: the Makefile's own command, through torchrun, to the files of a run."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.moe_retrieval.rare_words import FAST, SCRATCH, write_collection

ROOT = Path(__file__).parents[1]


def command(flags: list[str]) -> list[str]:
    """What `make train` would run, in the environment that runs this instead of the one that make prepares."""
    asked = ["make", "--dry-run", "--no-print-directory", "--assume-old=.venv/installed", "train", "NPROC=2"]
    done = subprocess.run([*asked, f"ARGS={shlex.join(flags)}"], cwd=ROOT, capture_output=True, text=True, check=True)
    program, *arguments = shlex.split(done.stdout.splitlines()[-1])
    assert program == ".venv/bin/torchrun"
    return [str(Path(sys.executable).parent / "torchrun"), *arguments]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_two_processes_train_from_end_to_end(tmp_path):
    folder, run = write_collection(tmp_path / "a collection"), tmp_path / "a run"
    settings = SCRATCH | dict(max_steps=4, batch_size=FAST.batch_size, eval_every=2, save_every=2, precision="fp32")
    settings |= dict(dataset=str(folder), output_dir=str(run))
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command(flags), cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "processes  2 on cpu, fp32" in done.stdout
    assert done.stdout.count("| trained (sb-moe) |") == 1  # of one of them
    names = "model.safetensors", "config.json", "tokenizer.json", "run.trec", "index/index.json", "README.md"
    assert [name for name in names if not (run / name).is_file()] == []
    assert {path.name for path in (run / "checkpoints").glob("step-*")} == {"step-00000002", "step-00000004"}
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if "loss" in event] == [1, 2, 3, 4]
    assert 0 < json.loads((run / "metrics.json").read_text())["NDCG@10"] <= 1
