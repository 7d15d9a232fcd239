"""Whether files are what was written: against accidents of disks and copies, not against forgery.

CRC-32, because it is 2.4 times as fast as SHA-256 and finds any flipped byte.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_retrieval.errors import InputError
from moe_retrieval.files import read_json, write_json

KEY = "checksum"


def of_bytes(content: bytes) -> str:
    """
    >>> of_bytes(b"123456789")
    'cbf43926'
    """
    return f"{zlib.crc32(content):08x}"


def of_file(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            value = zlib.crc32(part, value)
    return f"{value:08x}"


def check_files(folder: Path, expected: Mapping[str, str]) -> None:
    """Raises for the first of these files, name -> checksum, that is missing or another one."""
    for name, checksum in expected.items():
        path = folder / name
        try:
            found = of_file(path)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
        if found != checksum:
            raise InputError(f"{path}: is damaged, or another's: its checksum is {found}, expected {checksum}")


def write_sealed(path: Path, description: dict[str, Any]) -> None:
    """JSON that carries its own checksum."""
    write_json(path, description | {KEY: _seal(description)})


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` was given."""
    description = read_json(path)
    if not isinstance(description, dict) or description.pop(KEY, None) != _seal(description):
        raise InputError(f"{path}: is damaged, or of an earlier version: its checksum does not fit")
    return description


def _seal(description: Any) -> str:
    return of_bytes(json.dumps(description, sort_keys=True).encode())
