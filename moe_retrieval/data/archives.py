"""Archives from the net: checked, and unpacked where nothing else can be written."""

import logging
import stat
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from moe_retrieval.data.fetch import digests_of, fetch
from moe_retrieval.errors import InputError
from moe_retrieval.locks import locked

log = logging.getLogger("moe_retrieval")


def fetch_archive(name: str, urls: Sequence[str], folder: Path, md5: str | None) -> None:
    """Unpacks NAME.zip into a folder, from the first place that has it; `md5` is None where none is published.

    The archive lies beside the folder: what a process that was killed left of it, the next one goes on from.
    """
    kept = folder.parent / f".{name}.download"
    with ExitStack() as stack:
        stack.callback(_remove_if_empty, kept)
        try:
            stack.enter_context(locked(kept))
        except InputError:  # another process fetches it too, and nobody waits for anybody
            kept = folder
        archive = kept / f"{name}.zip"
        try:
            if not _is_there(archive, md5):
                _fetch_first(name, urls, archive, md5)
            unpack(archive, folder)
        except InputError:
            archive.unlink(missing_ok=True)
            raise
        archive.unlink()
        inner = folder / name
        if inner.is_dir():  # most archives hold one folder, of their own name
            for path in list(inner.iterdir()):
                path.rename(folder / path.name)
            inner.rmdir()


def _remove_if_empty(folder: Path) -> None:
    """There may be a part in it, for another time."""
    with suppress(OSError):
        folder.rmdir()


def _is_there(archive: Path, md5: str | None) -> bool:
    """Whole, and not unpacked: only its checksum can say so."""
    return md5 is not None and archive.is_file() and digests_of(archive)["md5"] == md5


def _fetch_first(name: str, urls: Sequence[str], archive: Path, md5: str | None) -> None:
    failures = []
    for url in urls:
        try:
            digest = fetch(url, archive)["md5"]
        except OSError as error:
            failures.append(f"{url}: {getattr(error, 'reason', error)}")
            continue
        if md5 is None:
            log.warning("%s: no checksum of it is published; it has md5 %s", url, digest)
        elif digest != md5:
            failures.append(f"{url}: its md5 is {digest}, not {md5}")
            continue
        return
    raise InputError(f"cannot download {name}: {'; '.join(failures)}")


def unpack(archive: Path, folder: Path) -> None:
    """Refuses an archive with a member that would end up outside of the folder, or that is a link."""
    root = folder.resolve()
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                target = (root / member.filename).resolve()
                if not target.is_relative_to(root) or stat.S_ISLNK(member.external_attr >> 16):
                    raise InputError(f"{archive.name}: the member {member.filename!r} would leave the folder")
            opened.extractall(root)
    except zipfile.BadZipFile as error:
        raise InputError(f"{archive.name}: not a zip archive ({error})") from None
