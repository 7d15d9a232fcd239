"""The run for a machine with a GPU, rehearsed without one: no typo may cost the one chance."""

import os
import subprocess
import sys
import time

import pytest

from bench.gpu import __main__ as whole
from bench.gpu import saved
from bench.harness.machine import ROOT

SLEEPER = "import time; print('begins', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); " + SLEEPER
ABSENT = ("faiss", "beir", "pytrec_eval", "tyro", "bm25s", "sentence_transformers")
"""What the machine with the GPU has not."""
ONE_LAYER = "MoE swiglu T=21 H=24 F=20 E=3 bf16"


def raising(error):
    def call():
        raise error

    return call


def test_each_case_is_saved_as_it_ends(tmp_path, capsys):
    cases = saved.Cases(tmp_path / "cases.jsonl")
    cases.run("right", lambda: {"error": 0.5})
    assert [case["case"] for case in saved.read(cases.path)] == ["right"]
    cases.run("wrong", raising(ValueError("off by one\nand more")))
    cases.run("elsewhere", raising(saved.Skipped("no GPU")))
    told = [(case["outcome"], case["reason"]) for case in saved.read(cases.path)]
    assert told == [("held", ""), ("failed", "ValueError: off by one"), ("skipped", "no GPU")]
    assert saved.read(cases.path)[0]["error"] == 0.5
    with pytest.raises(SystemExit) as end:
        cases.end()
    assert end.value.code == 1


def test_nothing_runs_on_a_device_in_an_error_that_stays(tmp_path, capsys):
    cases = saved.Cases(tmp_path / "cases.jsonl")
    with pytest.raises(SystemExit, match="stays"):
        cases.run("broken", raising(RuntimeError("CUDA error: an illegal memory access was encountered")))
    assert saved.read(cases.path)[0]["outcome"] == "failed"


def test_shares_have_each_case_once(tmp_path, capsys):
    for own in range(3):
        cases = saved.Cases(tmp_path / "cases.jsonl", only="a", share=f"{own}/3")
        for name in ("a1", "a2", "b", "a3", "a4"):
            cases.run(name, lambda: None)
    assert sorted(case["case"] for case in saved.read(cases.path)) == ["a1", "a2", "a3", "a4"]


@pytest.mark.parametrize("code,rest", [(SLEEPER, ""), (STUBBORN, ", and had to be killed")], ids=["heeds", "stubborn"])
def test_a_part_that_is_cut_says_so(code, rest, tmp_path, monkeypatch):
    monkeypatch.setattr(whole, "GRACE", 1.0)
    part = whole.Part("slow", 3.0, {"slow": [sys.executable, "-c", code], "quick": [sys.executable, "-c", "print(1)"]})
    start = time.monotonic()
    assert whole.run(part, tmp_path, small=True) == {"slow": f"cut by its limit{rest}", "quick": "ended"}
    assert time.monotonic() - start < 20
    assert whole.last_words(tmp_path, "quick") == "1"
    assert (tmp_path / "slow.log").read_text().startswith("begins")


def test_it_fits_into_ten_minutes(monkeypatch):
    monkeypatch.setattr(whole.shutil, "which", lambda name: name)
    parts = whole.parts(ROOT, small=False)
    assert [part.name for part in parts] == ["tests", "primitives", "sanitizer", "application", "peers"]
    assert sum(part.seconds + whole.GRACE for part in parts) <= 590
    assert len(next(part for part in parts if part.name == "tests").commands) == 12


def test_tests_that_are_left_out_are_there():
    for name in whole.NOT_OF_THE_DEVICE:
        assert (ROOT / f"tests/kernels/test_{name}.py").is_file()


@pytest.mark.slow
def test_the_whole_run(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = ["bash", ROOT / "bench/gpu.sh", tmp_path]
    done = subprocess.run(command, env=environment | {"PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    outcomes = {
        name: [case["outcome"] for case in saved.read(tmp_path / f"{name}.jsonl")]
        for name in ("primitives", "application", "peers")
    }
    assert all(set(found) <= {"held", "skipped"} for found in outcomes.values()), outcomes
    # 5 layers in 3 types, norms in 3 and attention in 2, with dropout and without, and what each of two processes says
    # of the cache
    assert outcomes["primitives"].count("held") == 5 * 3 + 2 * 3 + 2 * 2 + 2
    assert outcomes["application"].count("skipped") == 1  # NCCL
    assert outcomes["peers"] == ["held"] * 2


@pytest.mark.slow
def test_the_application_without_what_is_not_there(tmp_path):
    output = tmp_path / "application.jsonl"
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r}))\n"
        f"sys.argv = ['application', {str(output)!r}, '--small']\n"
        "from bench.gpu import application; application.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    outcomes = {case["case"]: case["outcome"] for case in saved.read(output)}
    assert done.returncode == 0, (outcomes, done.stderr[-2000:])
    assert [outcomes.pop(name) for name in ("evaluate", "index and search", "one rank, NCCL")] == ["skipped"] * 3
    assert set(outcomes.values()) == {"held"}


@pytest.mark.slow
def test_a_cache_that_was_brought_along_is_found(tmp_path):
    """Compiled for a GPU that is not here, once; another process finds all of it."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    counts = []
    for output in (tmp_path / "first.jsonl", tmp_path / "second.jsonl"):
        command = [sys.executable, "-m", "bench.gpu.precompile", output, "--small", "--only", ONE_LAYER]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        layer, cache = saved.read(output)
        assert layer["outcome"] == "held"
        counts.append((cache["found"], cache["compiled"]))
    (found, compiled), again = counts
    assert found == 0
    assert compiled > 10
    assert again == (compiled, 0)
