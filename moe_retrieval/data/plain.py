"""Plain files of what comes compressed or through standard input: documents are read in place, by their offset."""

import atexit
import gzip
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

from moe_retrieval.data.cache import cache_dir, cache_key, cached_folder
from moe_retrieval.errors import InputError
from moe_retrieval.progress import Meter

STANDARD_INPUT = "-"


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[BufferedIOBase]:
    """The bytes of a file, unpacked where its name ends in .gz."""
    packed = os.fspath(path).endswith(".gz")
    try:
        with gzip.open(path) if packed else open(path, "rb") as file:
            yield file
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: not a whole gzip file ({error})") from None


def existing(path: Path) -> Path:
    """This file, or the same with .gz where only that is there."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path


def plain_file(path: str | os.PathLike) -> Path:
    """The file itself; of NAME.gz an unpacked copy in the cache; of "-" what standard input has, for this process."""
    if os.fspath(path) == STANDARD_INPUT:
        return _standard_input()
    given = Path(path)
    if given.suffix != ".gz":
        return given
    status = given.stat()
    key = cache_key((), str(given.resolve()), status.st_size, status.st_mtime_ns)
    folder = cached_folder(cache_dir() / "unpacked" / f"{given.stem}-{key}", lambda draft: _unpack(given, draft))
    return folder / given.stem


def _unpack(path: Path, folder: Path) -> None:
    with Meter(f"unpacking {path.name}"), opened(path) as file, open(folder / path.stem, "wb") as plain:
        shutil.copyfileobj(file, plain)


def _standard_input() -> Path:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("standard input goes to one process only: give several a file")
    if sys.stdin.isatty():
        raise InputError("standard input is a terminal: expected lines from a pipe or a file")
    folder = Path(tempfile.mkdtemp(prefix="moe_retrieval-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "standard-input.jsonl"
    with Meter("reading standard input"), open(path, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path
