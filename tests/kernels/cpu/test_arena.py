"""The arena of kernels/cpu/runtime in a program of its own, since what breaks its rules ends the process."""

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from kernels.cpu import build

BEYOND = "a piece of memory was written beyond its end"
NOT_INNERMOST = "memory is taken from a frame that is not the innermost of its thread"


def compiled(folder, *flags):
    if shutil.which("g++") is None:
        pytest.skip("no compiler")
    target = folder / "arena_cases"
    sources = [build.HERE / "runtime" / f"{name}.cpp" for name in ("arena", "poison", "pool")]
    cases = Path(__file__).with_name("arena_cases.cpp")
    command = ["g++", "-std=c++20", "-O2", "-Wall", "-Werror", "-pthread", "-I", build.HERE, *flags]
    subprocess.run([*command, cases, *sources, "-o", target], check=True)
    return lambda case: subprocess.run([target, case], capture_output=True, text=True)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("arena"))


@pytest.mark.parametrize("case", ["pieces", "poisoned"])
def test_pieces_are_apart_aligned_used_again_and_poisoned_for_tests(program, case):
    result = program(case)
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")


@pytest.mark.parametrize(
    "case, message",
    [
        ("written beyond its end", BEYOND),
        ("the last of many", BEYOND),
        ("in an earlier slab", BEYOND),
        ("not the innermost", NOT_INNERMOST),
        ("of another thread", NOT_INNERMOST),
        ("a negative size", "a piece of a negative size is taken"),
    ],
)
def test_what_breaks_the_rules_ends_the_process(program, case, message):
    result = program(case)
    assert result.returncode == -signal.SIGABRT
    assert result.stderr == f"kernels/cpu/runtime/arena: {message}\n"


def test_one_byte_beyond_a_piece_is_seen_at_once_by_address_sanitizer(tmp_path):
    runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True)
    if not Path(runtime.stdout.strip()).is_absolute():
        pytest.skip("no AddressSanitizer")
    program = compiled(tmp_path, "-fsanitize=address", "-g1")
    assert program("pieces").returncode == 0
    result = program("written beyond its end")
    assert "use-after-poison" in result.stderr
    assert "arena_cases.cpp" in result.stderr
