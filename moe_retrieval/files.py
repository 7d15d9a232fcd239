"""Files that are whole or not there, and JSON."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from moe_retrieval.errors import InputError


def write(path: Path, content: bytes) -> None:
    """The whole file or the one before: never a half."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)  # on a full disk it is in the way
        error.filename = str(path)
        raise


@contextmanager
def drafted(path: Path) -> Iterator[TextIO]:
    """To write text to that may be long: it gets its name at the end, and until then a file of that name stays."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        with draft.open("w", encoding="utf-8") as file:
            yield file
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    write(path, (json.dumps(content, indent=2) + "\n").encode())


def check_space(folder: Path, needed: int) -> None:
    """Raises where the disk is too full, before there is work to lose."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(f"{folder}: {free // 10**6} MB free, {-(-needed // 10**6)} MB needed")


def read_object(path: Path) -> dict[str, Any]:
    """JSON that is an object {...}."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"cannot read {path}: expected an object {{...}}, got {content!r:.40}")
    return content


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except RecursionError:
        raise InputError(f"cannot read {path}: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"cannot read {path}: {error}") from None
