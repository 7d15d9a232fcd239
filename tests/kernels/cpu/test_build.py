"""How the library comes to be: once, whole, for this torch, and not at all without a compiler."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.cpu import build
from kernels.cpu.levels import LEVELS, Machine, best, runnable

ROOT = Path(build.__file__).parents[2]


def function(name, number=1):
    return f'extern "C" __attribute__((visibility("default"))) int {name}() {{ return {number}; }}'


TINY = {"kernels/level.cpp": "level", "ops/some.cpp": "some", "runtime/threads.cpp": "threads"}


def run(code, *, cwd, **env):
    """A process of its own -> (stdout, stderr)"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(cwd), **env},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout, result.stderr


@pytest.fixture
def installation(tmp_path):
    """A copy of the package without its library."""
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Sources that compile in no time, no prebuilt library, an empty cache."""
    if shutil.which("g++") is None:
        pytest.skip("no compiler")
    sources = tmp_path / "sources"
    sources.mkdir()
    for path, name in TINY.items():
        (sources / path).parent.mkdir()
        (sources / path).write_text(function(name))
    monkeypatch.setattr(build, "HERE", sources)
    monkeypatch.setenv("MOE_KERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def test_a_library_is_compiled_once_and_found_again(tiny, caplog):
    first = build.library("portable")
    assert first.parent == tiny / "cache"
    assert build.library("portable") == first
    assert [record.message.partition(",")[0] for record in caplog.records] == ["compiling the CPU kernels for portable"]
    assert [path.suffix for path in sorted((tiny / "cache").iterdir())] == [".lock", ".so"]


def test_whatever_matters_changes_the_name(tiny, monkeypatch):
    names = [build.library("portable")]
    (build.HERE / "kernels" / "level.cpp").write_text(function("level", 5))
    names.append(build.library("portable"))
    (build.HERE / "ops" / "another.h").write_text("")
    names.append(build.library("portable"))
    (build.HERE / "ops" / "another.h").rename(build.HERE / "runtime" / "another.h")
    names.append(build.library("portable"))
    monkeypatch.setenv("MOE_KERNELS_CXXFLAGS", "-g")
    names.append(build.library("portable"))
    monkeypatch.setattr(torch, "__version__", "0.0.1")
    names.append(build.library("portable"))
    assert len(set(names)) == 6


def test_every_source_is_compiled(tiny):
    """Whatever lies in a folder is part of the library; no list has to be kept."""
    (build.HERE / "ops" / "more.cpp").write_text(function("more", 7))
    (build.HERE / "runtime" / "other.cpp").write_text(function("other", 8))
    library = ctypes.CDLL(build.library("portable"))
    assert [getattr(library, name)() for name in TINY.values()] == [1, 1, 1]
    assert (library.more(), library.other()) == (7, 8)


def test_a_build_that_goes_on_changes_no_name(tiny):
    name = build.prebuilt()
    (build.HERE / ".build-unfinished").mkdir()
    (build.HERE / ".build-unfinished" / "ops.cpp").write_text("")
    assert build.prebuilt() == name


def test_a_binary_of_another_torch_is_not_loaded(tiny, monkeypatch):
    stale = build.prebuilt()
    stale.write_bytes(b"not a library of this torch")
    assert build.library("portable") == stale, "the test's premise: it would be taken for this version"
    monkeypatch.setattr(torch, "__version__", torch.__version__ + ".post1")
    assert build.library("portable").parent == tiny / "cache"


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no users")
def test_code_that_others_may_have_written_is_refused(tiny, monkeypatch):
    umask = os.umask(0)
    try:
        library = build.library("portable")
    finally:
        os.umask(umask)
    assert library.parent.stat().st_mode & 0o077 == 0
    for bit in (0o020, 0o002):
        mode = library.stat().st_mode
        library.chmod(mode | bit)
        with pytest.raises(ImportError, match=f"others may have written: chmod go-w {library}, or"):
            build.library("portable")
        library.chmod(mode)
    library.parent.chmod(0o777)
    assert build.library("portable") == library
    assert library.parent.stat().st_mode & 0o022 == 0
    assert build.library("portable") == library
    owner = library.parent.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    if owner:  # root's files are everybody's
        with pytest.raises(ImportError, match=f"{library.parent} is of user {owner}"):
            build.library("portable")
    else:
        os.chown(library, 4321, -1)
        with pytest.raises(ImportError, match=f"{library} is of user 4321"):
            build.library("portable")


def test_two_processes_at_once_do_not_collide(tiny):
    code = (
        "import sys, logging; from pathlib import Path; logging.basicConfig(); from kernels.cpu import build;"
        f"build.HERE = Path({str(build.HERE)!r}); print(build.library('portable'))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert len({out for out, _ in outputs}) == 1
    assert Path(outputs[0][0].strip()).exists()
    assert sum("compiling" in error for _, error in outputs) == 1, "the others waited"


@pytest.mark.parametrize(
    "variable,value,message",
    [
        ("CXX", "no-such-compiler", "no C.. compiler"),
        ("CXX", "false", "did not compile"),
        ("MOE_KERNELS_CACHE", "/dev/null/cache", "cannot be built in /dev/null/cache"),
    ],
)
def test_a_reason_is_given(tiny, monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ImportError, match=message):
        build.library("portable")
    assert not list(tiny.glob("cache/*.so"))


def test_without_a_compiler_eager_runs_and_says_so_once(installation):
    code = (
        "import torch, kernels; layer = kernels.MoE(8, 8, num_experts=2, top_k=1); x = torch.randn(3, 8);"
        "y = layer(x), layer(x); print(kernels.available_backends()[-1], 'native' in kernels.available_backends())"
    )
    out, err = run(code, cwd=installation, CXX="no-such-compiler", MOE_KERNELS_CACHE=str(installation / "cache"))
    assert out.split() == ["eager", "False"]
    assert err.count("running in plain PyTorch") == 1
    assert "'no-such-compiler' not found" in err


@pytest.mark.slow
@pytest.mark.parametrize("level", ["avx512", "avx2", "portable", "amx_emulated"])
def test_everything_at_a_lower_level(level):
    machine = Machine.read()
    if level == best(machine, runnable(machine)).bf16 or level not in runnable(machine):
        pytest.skip(f"{level} is not below what this machine has")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-k", "native or residual or frozen",
         "tests/kernels/test_layers.py", "tests/kernels/encoder"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "MOE_KERNELS_CPU_LEVEL": level},
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout


SMALL_RUN = """
import torch
from tests.kernels.cpu.test_kernels import results
import kernels
torch.set_num_threads(2)
with kernels.use_backend("native"):
    for dtype in (torch.float32, torch.bfloat16):
        assert all(t.isfinite().all() for t in results(dtype))
print("clean")
"""


@pytest.mark.slow
@pytest.mark.parametrize("level", ["", "amx_emulated"], ids=["the best level", "amx_emulated"])
def test_no_address_out_of_bounds(tmp_path, level):
    """AddressSanitizer over every kernel on odd sizes."""
    if level and level not in runnable(Machine.read()):
        pytest.skip("the machine is not able to emulate")
    compiler = shutil.which("g++")
    runtime = compiler and subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True)
    if not runtime or not Path(runtime.stdout.strip()).is_absolute():
        pytest.skip("no AddressSanitizer")
    copy = tmp_path / "copy"
    for folder in ("kernels", "moe_retrieval", "tests", "bench"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    out, err = run(
        SMALL_RUN, cwd=copy, LD_PRELOAD=runtime.stdout.strip(), ASAN_OPTIONS="detect_leaks=0",
        MOE_KERNELS_CXXFLAGS="-fsanitize=address -O1 -g1", MOE_KERNELS_CACHE=str(tmp_path / "cache"),
        MOE_KERNELS_CPU_LEVEL=level,
    )  # fmt: skip
    assert out.strip() == "clean"
    assert "AddressSanitizer" not in err


@pytest.mark.slow
@pytest.mark.parametrize("level", ["portable", "amx_bf16"])
def test_objects_share_no_code(tmp_path, level):
    """A function that two objects define could be kept in the version of the wrong instruction set."""
    if shutil.which("g++") is None or shutil.which("nm") is None or level not in build.supported_levels():
        pytest.skip("no compiler, or none that knows these instructions")
    target = tmp_path / "level.o"
    source = str(build.HERE / "kernels" / "level.cpp")
    subprocess.run(
        [
            "g++",
            *build.LEVEL_FLAGS.split(),
            *LEVELS[level].compiler.split(),
            f"-DLEVEL={level}",
            "-c",
            source,
            "-o",
            target,
        ],
        check=True,
    )
    symbols = subprocess.run(["nm", "-g", "--defined-only", target], capture_output=True, text=True, check=True)
    assert len(symbols.stdout.splitlines()) == 1
    assert f"kernels_{level}" in symbols.stdout
