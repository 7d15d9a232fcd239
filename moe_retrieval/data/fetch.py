"""A file from the web that comes whole: where a connection breaks, what came is kept, and the rest is asked for.

As long as NAME is not whole it is NAME.part, with NAME.part.json beside it: where it is from, and what the server then
called that version of it. Bytes of another address or version are never joined to it.
"""

import hashlib
import http.client
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import Any

from moe_retrieval.errors import InputError
from moe_retrieval.files import read_json, write_json
from moe_retrieval.progress import Meter

MEGABYTE = 1 << 20
PATIENCE = 60
"""Seconds without a byte after which a connection is taken for dead"""

RANGE_NOT_SATISFIABLE = 416


def fetch(url: str, target: Path) -> dict[str, str]:
    """-> the md5 and the sha256 of the file, which is then at `target`. Raises OSError where it does not come."""
    part = _part(target)
    while True:
        before = _size(part)
        try:
            _fetch_rest(url, part)
            break
        except OSError:
            if _size(part) <= before:  # else something came, and the next attempt goes on from there
                raise
        except http.client.HTTPException as error:
            if _size(part) <= before:
                raise OSError(f"{type(error).__name__}: {error}") from None
    digests = digests_of(part, target.name)  # of what lies on the disk, not of what came
    part.replace(target)
    _origin(part).unlink(missing_ok=True)
    return digests


def fetched(target: Path) -> int:
    """The bytes of it that an earlier attempt left."""
    return _size(_part(target))


def digests_of(path: Path, label: str | None = None) -> dict[str, str]:
    """The md5 and the sha256 of a file, in hex; `label` is what it is called meanwhile."""
    found = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
    size = path.stat().st_size
    with path.open("rb") as file, Meter(label and f"checking {label}", -(-size // MEGABYTE), "MB") as meter:
        while chunk := file.read(MEGABYTE):
            for digest in found.values():
                digest.update(chunk)
            meter.advance()
    return {name: digest.hexdigest() for name, digest in found.items()}


def _fetch_rest(url: str, part: Path) -> None:
    """What `part` lacks, appended to it; all of it where the server cannot, or has another version by now."""
    have, version = _size(part), _version(url, part)
    asked = {"Range": f"bytes={have}-", "If-Range": version} if have and version else {}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=asked), timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code != RANGE_NOT_SATISFIABLE or not asked:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":  # it was whole, and only its new name is missing
            return
        part.unlink()
        return _fetch_rest(url, part)
    with response:
        goes_on = response.status == http.client.PARTIAL_CONTENT
        if goes_on and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink()
            raise OSError("the server sent another part than was asked for")
        if not goes_on:
            have = 0
            part.unlink(missing_ok=True)  # before its origin changes: a kill in between must not join two versions
            write_json(_origin(part), {"url": url, "version": _named_version(response.headers)})
        _append(response, part, have)


def _append(response: Any, part: Path, have: int) -> None:
    """The body behind the first `have` bytes of `part`."""
    length = response.headers.get("Content-Length")
    total = None if length is None else have + int(length)
    megabytes = None if total is None else -(-total // MEGABYTE)
    with open(part, "ab") as file, Meter(part.stem, megabytes, "MB", done=have // MEGABYTE) as meter:
        while chunk := response.read(MEGABYTE):
            file.write(chunk)
            meter.advance()
    if total is not None and _size(part) != total:
        raise OSError(f"the connection ended after {_size(part)} of {total} bytes")


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _origin(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _version(url: str, part: Path) -> str | None:
    """What the server called the version that `part` began as; None where it is not known, or not of this address."""
    try:
        origin = read_json(_origin(part))
        return origin["version"] if origin["url"] == url else None
    except (InputError, KeyError, TypeError):
        return None


def _named_version(headers: Message) -> str | None:
    """A strong ETag, or else the date of the last change."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
