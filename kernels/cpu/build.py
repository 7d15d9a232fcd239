"""Compiles and loads the C++ of this folder: `kernels/` once for each instruction set, `ops/` and `runtime/` once.

A library is named by a digest of everything that decides whether it may be loaded: the sources, the torch version and,
for one compiled at first use, the compiler, the flags and the instruction set. A name that is there is therefore right,
and one of another torch version is not found. It is written elsewhere and renamed, so two processes cannot collide.

A library is code that runs as whoever loads it: one that somebody else could have put there is refused. What is trusted
are the variables CXX and MOE_KERNELS_CXXFLAGS, as those of any compiler.
"""

import contextlib
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kernels.cpu.levels import EMULATIONS, LEVELS, Choice, Machine, best, runnable, tiles_are_allowed

HERE = Path(__file__).parent

COMMON = "-fPIC -fvisibility=hidden -fno-math-errno -ffp-contract=fast -Wall -Wno-psabi -Wno-maybe-uninitialized"
# What handles an exception is code that objects would share. Those of the runtime pass through.
LEVEL_FLAGS = f"-std=c++17 -O3 -fno-exceptions -fasynchronous-unwind-tables {COMMON}"
# OpenMP's runtime is the one that torch has loaded: linking another would start a second pool of threads.
HOST_FLAGS = f"-std=c++20 -O2 -fopenmp -DAT_PARALLEL_OPENMP=1 {COMMON}"


def sources() -> list[Path]:
    """Whatever a library is made of, by its path from here."""
    folders = (HERE, *(HERE / name for name in ("kernels", "ops", "runtime")))
    return sorted(p.relative_to(HERE) for folder in folders for p in folder.glob("*") if p.suffix in (".cpp", ".h"))


def _units(folder: str) -> list[Path]:
    return [HERE / path for path in sources() if path.parts[0] == folder and path.suffix == ".cpp"]


def _digest(*parts: str) -> str:
    import torch

    digest = hashlib.sha256()
    for part in (torch.__version__, str(torch._C._GLIBCXX_USE_CXX11_ABI), platform.machine(), *parts):
        digest.update(part.encode() + b"\0")
    for path in sources():
        digest.update(path.as_posix().encode() + b"\0" + (HERE / path).read_bytes())
    return digest.hexdigest()[:20]


def prebuilt() -> Path:
    """Where an installation of this version for this torch has its library, with every instruction set in it."""
    return HERE / f"moe_cpu-{_digest('prebuilt')}.so"


def supported_levels() -> list[str]:
    """What a library for any machine of this kind holds."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ["portable"]
    return [level for level in LEVELS if _compiles(level)]


def _compiles(level: str) -> bool:
    """Whether the compiler knows this instruction set; one that is too old leaves it out, and says so."""
    wanted = (LEVELS | EMULATIONS)[level]
    command = [*compiler().split(), *wanted.compiler.split(), "-x", "c++", "-c", "-", "-o", os.devnull]
    result = subprocess.run(command, input=f'void probe() {{ asm("{wanted.probe}"); }}', capture_output=True, text=True)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        logging.getLogger("kernels").warning("%s leaves out %s: %s", compiler(), level, reason)
    return not result.returncode


def compiler() -> str:
    """The command of the C++ compiler: $CXX, or g++."""
    command = os.environ.get("CXX") or "g++"
    if shutil.which(command.split()[0]) is None:
        raise ImportError(f"the native CPU backend is not built and there is no C++ compiler ({command!r} not found)")
    return command


def ninja() -> str:
    found = shutil.which("ninja")
    if found is None:
        with contextlib.suppress(ImportError):
            import ninja as package

            found = str(Path(package.BIN_DIR) / "ninja")
    if found is None or not Path(found).exists():
        raise ImportError("the native CPU backend is not built and there is no ninja to build it (pip install ninja)")
    return found


def cache_folder() -> Path:
    root = os.environ.get("MOE_KERNELS_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moe-retrieval"


def _check_that_nobody_else_writes(path: Path) -> None:
    """Where there are users: Windows keeps a user's files from others in ways of its own."""
    if not hasattr(os, "getuid"):
        return
    status = path.stat()
    if path.is_dir() and status.st_uid == os.getuid() and status.st_mode & 0o022:  # of an earlier version, by a umask
        path.chmod(status.st_mode & ~0o022)
        status = path.stat()
    if status.st_uid not in (os.getuid(), 0):
        raise ImportError(
            f"the native CPU backend does not load code of another user: {path} is of user {status.st_uid}"
        )
    if status.st_mode & 0o022:
        raise ImportError(
            f"the native CPU backend does not load code that others may have written: chmod go-w {path}, or delete it"
        )


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process at a time, so that the others wait for its library instead of compiling their own."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _level_flags(level: str) -> str:
    return f"{LEVEL_FLAGS} {(LEVELS | EMULATIONS)[level].compiler}"


def _ninja_file(levels: list[str], command: str, target: Path) -> str:
    import torch

    root = Path(torch.__file__).parent

    def quoted(text: object) -> str:
        return str(text).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    macro = " ".join(f"X({level})" for level in levels)
    extra = os.environ.get("MOE_KERNELS_CXXFLAGS", "")
    lines = [
        "ninja_required_version = 1.5",
        "rule compile",
        "  command = $cxx $flags $extra -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "rule link",
        "  command = $cxx -shared $extra $in -L$lib -ltorch_cpu -lc10 -o $out",
        f"cxx = {command}",
        f"extra = {extra}",
        f"lib = '{root / 'lib'}'",
        "host_flags = "
        f"{HOST_FLAGS} -D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)} "
        f"'-DMOE_LEVELS(X)={macro}' -isystem '{root / 'include'}'",
    ]
    level_source = HERE / "kernels" / "level.cpp"
    units = [(f"kernels_{level}", level_source, f"{_level_flags(level)} -DLEVEL={level}") for level in levels]
    units += [("ops", Path("ops.cpp"), "$host_flags")]
    units += [(f"runtime_{path.stem}", path, "$host_flags") for path in _units("runtime")]
    for name, source, flags in units:
        lines += [f"build {name}.o: compile {quoted(source)}", f"  flags = {flags}"]
    objects = [f"{name}.o" for name, *_ in units]
    lines += [f"build {quoted(target)}: link {' '.join(objects)}", f"default {quoted(target)}", ""]
    return "\n".join(lines)


def compile_library(levels: list[str], target: Path) -> None:
    """Builds `target` with the kernels of these instruction sets; it appears whole or not at all."""
    command, tool, target = compiler(), ninja(), target.resolve()
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as folder:
        library = Path(folder) / target.name
        # All of ops/ at once: the compiler takes longer to read torch's headers than for all that includes them.
        (Path(folder) / "ops.cpp").write_text("".join(f'#include "{path}"\n' for path in _units("ops")))
        (Path(folder) / "build.ninja").write_text(_ninja_file(levels, command, library))
        result = subprocess.run([tool, "-C", folder], capture_output=True, text=True)
        if result.returncode:
            raise ImportError(f"the native CPU backend did not compile with {command}:\n{result.stdout[-4000:]}")
        library.chmod(0o755)
        os.replace(library, target)


def library(*levels: str) -> Path:
    """The library to load for these levels: the prebuilt one, one from the cache, or one that is compiled now."""
    if prebuilt().exists() and not set(levels) & set(EMULATIONS):
        return prebuilt()
    command = compiler()
    version = subprocess.run([*command.split(), "--version"], capture_output=True, text=True).stdout
    flags = [HOST_FLAGS, *map(_level_flags, levels), os.environ.get("MOE_KERNELS_CXXFLAGS", "")]
    name = "-".join(levels)
    target = cache_folder() / f"moe_cpu-{name}-{_digest(command, version, *flags, name)}.so"
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_that_nobody_else_writes(target.parent)
        if target.exists():
            _check_that_nobody_else_writes(target)
            return target
        with _lock(target.with_suffix(".lock")):
            if not target.exists():
                logging.getLogger("kernels").warning("compiling the CPU kernels for %s, once (half a minute)", name)
                compile_library(list(levels), target)
    except OSError as error:
        raise ImportError(f"the native CPU backend cannot be built in {target.parent}: {error}") from error
    return target


def wanted(machine: Machine, able: list[str]) -> Choice:
    """Of the levels that are there: $MOE_KERNELS_CPU_LEVEL, or the best. Tile registers may still be refused, by the
    system or by a compiler that is too old."""
    level = os.environ.get("MOE_KERNELS_CPU_LEVEL")
    if not level:
        return best(machine, able)
    names = [*LEVELS, *EMULATIONS]
    if level not in names:
        raise ImportError(f"MOE_KERNELS_CPU_LEVEL must be one of {', '.join(names)}; got {level!r}")
    if level not in able:
        raise ImportError(f"MOE_KERNELS_CPU_LEVEL is {level!r}, but this machine has {able[0]!r} at best")
    if level == "amx_bf16" and not tiles_are_allowed():
        logging.getLogger("kernels").warning("the system refuses tile registers (AMX): running without them")
        return best(machine, able)
    if level == "amx_bf16" and not prebuilt().exists() and not _compiles(level):
        return best(machine, able)
    return Choice(level, level)


def load() -> Choice:
    """Loads the library into torch and chooses the levels; returns their names. ImportError says why not."""
    import torch

    machine = Machine.read()
    able = runnable(machine)
    choice = wanted(machine, able)
    try:
        torch.ops.load_library(library(*dict.fromkeys(choice)))
    except OSError as error:
        raise ImportError(f"the native CPU backend does not load: {error}") from error
    ops = torch.ops.moe_retrieval_cpu
    if not set(choice) <= set(ops.levels()):  # the installation's compiler was too old for them
        logging.getLogger("kernels").warning("the installation has no kernels for %s", choice)
        choice = best(machine, [level for level in able if level in ops.levels()])
    ops.choose_level(*choice)
    return choice
