"""Compiling ahead of time."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

pytest.importorskip("triton")

from tests.kernels.gpu.uninterpreted import ROOT, run

TABLE = ROOT / "docs" / "compiled.md"

PROOF = """
from kernels import inspect
signature = (("p_a", "*bf16"), ("p_out", "*fp32"))
spilling = inspect.Job("tests.kernels.gpu.spilling", "_spilling_kernel", signature, (), 4, 1, 0, "sm_90")
report = inspect.compile_job(spilling)
assert report.spills > 0 and report.tensor_cores > 0, report
assert inspect.breach(spilling, report).startswith("spills"), report

gemm = spilling._replace(kernel="_up_kernel", signature=(("p_w", "*bf16"),))
good = inspect.Report(registers=128, spills=0, shared=1024, tensor_cores=4)
assert inspect.breach(gemm, good) == ""
assert inspect.breach(gemm, good._replace(tensor_cores=0)) == "no tensor cores"
assert inspect.breach(gemm._replace(signature=(("p_w", "*fp32"),)), good._replace(tensor_cores=0)) == ""
assert "shared" in inspect.breach(gemm, good._replace(shared=228 * 1024))
assert "shared" in inspect.breach(gemm._replace(arch="sm_80"), good._replace(shared=164 * 1024))
assert inspect.breach(gemm, inspect.Report(0, 0, 0, 0, "no")) == "does not compile"
"""


@pytest.mark.slow
def test_a_kernel_that_breaks_a_limit_is_found():
    result = run("-c", PROOF)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.slow
def test_the_quick_table(tmp_path):
    output = tmp_path / "compiled.md"
    result = run("-m", "kernels.inspect", "--quick", "--arch", "sm_90", "--output", str(output), cache=tmp_path)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert " 0 over a limit" in result.stdout
    if f"with Triton {version('triton')}." in TABLE.read_text():
        assert output.read_text() == TABLE.read_text()
    again = run("-m", "kernels.inspect", "--quick", "--arch", "sm_90", "--processes", "1", cache=tmp_path)
    assert sorted(again.stdout.splitlines()) == sorted(result.stdout.splitlines())  # from the cache


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["--arch", "sm_90"], ["--quick", "--arch", "sm_80", "sm_89", "sm_100"]], ids=" ".join
)
def test_the_whole_table(arguments):
    """Whole for one target, a size a kernel for the others: all of all is half an hour."""
    result = run("-m", "kernels.inspect", *arguments)
    assert result.returncode == 0, "\n".join(line for line in result.stdout.splitlines() if "<-" in line)


@pytest.mark.slow
def test_amd_compiles():
    result = run("-m", "kernels.inspect", "--quick", "--arch", "gfx942")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


def test_the_interpreter_is_refused():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "kernels.inspect"]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "TRITON_INTERPRET" in result.stderr


CONFIGURATIONS = """
from kernels import inspect
from kernels.gpu.sweep import launches
jobs = {inspect.job_of(launch, "sm_90") for launch in launches(quick=True)}
print("\\n".join(sorted(f"{inspect.title(job)} | {job.arch} | {inspect.describe(job)}" for job in jobs)))
"""


def test_the_committed_table_has_what_would_be_launched():
    """By name; what the compiler made of it is compared where all of it is compiled."""
    result = run("-c", CONFIGURATIONS)
    assert result.returncode == 0, result.stderr[-2000:]
    rows = [line.strip("| ").split(" | ") for line in TABLE.read_text().splitlines() if " | sm_90 | " in line]
    assert sorted(" | ".join(row[:3]) for row in rows) == result.stdout.splitlines()
    assert all(row[4] == "0" for row in rows), "a committed kernel spills"
