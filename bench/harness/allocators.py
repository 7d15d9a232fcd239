"""Other allocators of memory, under which peers may be faster: a fresh process is started with one by LD_PRELOAD."""

import ctypes.util
import os
import sys
from pathlib import Path

NAMES = ("jemalloc", "tcmalloc", "tcmalloc_minimal")
MAPS = Path("/proc/self/maps")


def available() -> dict[str, str]:
    """Name -> what LD_PRELOAD takes: the files in $BENCH_ALLOCATORS, else what the system has."""
    if not MAPS.exists():
        return {}
    given = [path for path in os.environ.get("BENCH_ALLOCATORS", "").split(os.pathsep) if path]
    if given:
        return {Path(path).name.removeprefix("lib").partition(".")[0]: path for path in given}
    found = {}
    for name in NAMES:
        beside = sorted((Path(sys.prefix) / "lib").glob(f"lib{name}.so*"))
        path = str(beside[0]) if beside else ctypes.util.find_library(name)
        if path:
            found[name] = path
    return found


def check_preloaded() -> None:
    """The loader only warns of a library that it cannot load."""
    for path in os.environ.get("LD_PRELOAD", "").split():
        if Path(path).name not in MAPS.read_text():
            raise RuntimeError(f"LD_PRELOAD: {path} was not loaded")
