"""A folder that one process at a time writes to.

The lock is the system's (flock) on a file `.lock` of the folder: it ends with the process that holds it, however that
ends. What the file says is for people. So a file that was left behind, by a process that was killed, with a number
that another process has by now, or from another machine, locks nothing.
"""

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moe_retrieval.errors import InputError

log = logging.getLogger("moe_retrieval")

NAME = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What a file system says that has none."""


@contextmanager
def locked(output: str | Path | None, flag: str = "--output-dir") -> Iterator[None]:
    """Makes the folder if need be; raises where it cannot be written to, or where another process holds it.

    None is no folder; `flag` is what names it.
    """
    if output is None:
        yield
        return
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(folder / NAME, flag)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from None
    try:
        yield
    finally:
        with suppress(OSError):  # before the lock ends: whoever has opened this file looks for a new one
            (folder / NAME).unlink()
        os.close(descriptor)


def _acquire(path: Path, flag: str) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, path, flag)
            if _is_still(path, descriptor):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, path: Path, flag: str) -> None:
    try:
        import fcntl
    except ImportError:  # Windows has none
        _warn_of_no_locks(path)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"{path.parent} is in use by {_holder(descriptor)}: wait for its end, or give another {flag}"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _warn_of_no_locks(path)


def _warn_of_no_locks(path: Path) -> None:
    log.warning("%s: there are no locks here; nothing keeps a second process from writing there", path.parent)


def _is_still(path: Path, descriptor: int) -> bool:
    """False if whoever held the lock removed the file between our opening and our locking it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    number, _, host = os.pread(descriptor, 300, 0).decode(errors="replace").strip().partition(" ")
    if not number.isdigit():
        return "another process"
    return f"process {number}" + (f" on {host}" if host and host != socket.gethostname() else "")
