"""Tile registers: the twin and the products in a program of their own, and the level that is made of the twin."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.cpu import build
from kernels.cpu.levels import EMULATIONS, LEVELS, Machine, runnable

CASES = ["the twin is the manual", "the instruction is the twin", "products of any size", "panels of any size"]
FLAGS = f"{LEVELS['amx_bf16'].compiler} {EMULATIONS['amx_emulated'].compiler}"


def compile_cpp(target, *sources, flags):
    if shutil.which("g++") is None:
        pytest.skip("no compiler")
    if "amx_bf16" not in build.supported_levels():
        pytest.skip("the compiler does not know tile registers")
    warnings = "-Wall -Werror -Wno-psabi -Wno-maybe-uninitialized"
    command = ["g++", *f"-std=c++20 {warnings} -fno-math-errno -pthread {flags}".split(), "-I", build.HERE]
    subprocess.run([*command, *sources, "-o", target], check=True)
    return target


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    runtime = [build.HERE / "runtime" / f"{name}.cpp" for name in ("arena", "poison", "pool")]
    cases = Path(__file__).with_name("tile_cases.cpp")
    return compile_cpp(tmp_path_factory.mktemp("tiles") / "cases", cases, *runtime, flags=f"-O1 {FLAGS}")


@pytest.mark.parametrize("case", [*CASES, "bits of a row"])
def test_in_a_program_of_its_own(program, case):
    if "amx_emulated" not in runnable(Machine.read()):
        pytest.skip("this machine has not even pairs of bf16, of which the rest of that level is made")
    result = subprocess.run([program, case], capture_output=True, text=True)
    if result.returncode == 77:
        pytest.skip(result.stdout.strip())
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")


def test_the_level_is_made_of_the_instructions(tmp_path):
    """Which this machine's compiler encodes, wherever they may run."""
    if shutil.which("objdump") is None:
        pytest.skip("no disassembler")
    source = tmp_path / "product.cpp"
    source.write_text("""
        #include "kernels/microkernel.h"
        void product(const void* a, int64_t rows, int64_t k, const float* b, float* c) {
          multiply((const bf16*)a, k, rows, k, b, 2, c);
          release_tiles();
        }
    """)
    target = compile_cpp(tmp_path / "product.o", source, flags=f"-O3 -c {LEVELS['amx_bf16'].compiler}")
    code = subprocess.run(["objdump", "-d", target], capture_output=True, text=True, check=True).stdout
    for instruction in ("ldtilecfg", "tilezero", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease"):
        assert instruction in code
    assert "vdpbf16ps" not in code


@pytest.mark.slow
def test_a_part_of_the_suite_on_the_twin():
    """All of it: MOE_KERNELS_CPU_LEVEL=amx_emulated pytest tests/kernels. The first run compiles, for half a minute."""
    if "amx_emulated" not in runnable(Machine.read()):
        pytest.skip("the machine is not able to emulate")
    if shutil.which("g++") is None:
        pytest.skip("no compiler")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "tests/kernels/cpu/test_kernels.py", "-k", "bfloat16 or any_address"],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MOE_KERNELS_CPU_LEVEL": "amx_emulated"},
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout
