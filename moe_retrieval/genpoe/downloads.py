"""Files of DPR on this machine: found in a folder, or fetched into it and held against what is known of them."""

import logging
import os
from pathlib import Path
from typing import Any

from moe_retrieval.data.cache import cache_dir
from moe_retrieval.data.fetch import digests_of, fetch, fetched
from moe_retrieval.errors import InputError
from moe_retrieval.files import check_space, read_object, write_json
from moe_retrieval.genpoe.catalogue import ENCODERS, FILES, RemoteFile
from moe_retrieval.locks import locked

log = logging.getLogger("moe_retrieval")

LEDGER = "seen.json"
"""Path of a file in the folder -> the size and the sha256 that it had when it was fetched."""


def folders(data_dir: str | None) -> list[Path]:
    """Where files are looked for; into the last of them they are fetched."""
    if data_dir is not None:
        return [Path(data_dir)]
    known = os.environ.get("MOE_RETRIEVAL_DATA")
    return [*([Path(known) / "dpr"] if known else []), cache_dir() / "dpr"]


def named(words: tuple[str, ...]) -> tuple[list[RemoteFile], list[str]]:
    """-> the files and the encoders that these words name; a file is named by its beginning, too."""
    files, encoders = [], []
    for word in words:
        found = [file for file in FILES.values() if _begins(file.name, word)]
        if word in ENCODERS:
            encoders.append(word)
        elif found:
            files += [file for file in found if file not in files]
        else:
            raise InputError(f"nothing is called {word!r}: without a name, all names are listed")
    return files, encoders


def _begins(name: str, word: str) -> bool:
    """With all of the word, and not with a part of a longer one."""
    return name == word or (name.startswith(word) and name[len(word)] in ".-_")


def find(file: RemoteFile, places: list[Path]) -> Path | None:
    """Where it lies; of the file and its unpacked copy the copy."""
    candidates = (folder / name for folder in places for place in file.places for name in _unpacked_too(place))
    return next((path for path in candidates if path.is_file()), None)


def _unpacked_too(place: str) -> list[str]:
    return list(dict.fromkeys((place.removesuffix(".gz"), place)))


def obtain(file: RemoteFile, places: list[Path], verify: bool = False) -> Path:
    """Where it lies, after it was fetched if need be. `verify` reads what lay there already, and not only its size."""
    found = find(file, places)
    if found is None:
        return _download(file, places[-1])
    folder = next(folder for folder in places if found.is_relative_to(folder))
    expected = _expected(file, found, folder)
    _compare(found, "size", found.stat().st_size, expected)
    if verify:
        digests = digests_of(found, found.name)
        for kind, digest in digests.items():
            _compare(found, kind, digest, expected)
        if not {"md5", "sha256"} & set(expected):
            log.warning("%s: no checksum of it is known; its sha256 is %s", found, digests["sha256"])
    return found


def _expected(file: RemoteFile, found: Path, folder: Path) -> dict[str, Any]:
    """What is known of a file that was found: from its publisher, and from when it was fetched."""
    published = found.suffix == file.path[file.path.rindex(".") :]  # and not its unpacked copy
    known = {"size": file.size, "md5": file.md5} if published else {}
    seen = _ledger(folder).get(str(found.relative_to(folder)), {})
    return {name: value for name, value in {**seen, **known}.items() if value is not None}


def _compare(path: Path, what: str, came: Any, expected: dict[str, Any]) -> None:
    if expected.get(what, came) != came:
        raise InputError(
            f"{path}: its {what} is {came}, expected {expected[what]}: it is not whole, or another file; "
            "where it is removed, it is fetched again"
        )


def _download(file: RemoteFile, folder: Path) -> Path:
    target = folder / file.places[0]
    with locked(folder, "--data-dir"):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {target.parent}: {error.strerror}") from None
        check_space(target.parent, (file.size or 0) - fetched(target))
        try:
            digests = fetch(file.url, target)
        except OSError as error:
            raise InputError(f"cannot download {file.url}: {getattr(error, 'reason', error)}") from None
        came = {"size": target.stat().st_size, **digests}
        if (file.md5 or came["md5"]) != came["md5"]:
            target.unlink()
            raise InputError(f"cannot download {file.url}: its md5 is {came['md5']}, not {file.md5}")
        seen = _ledger(folder)
        before = seen.get(file.places[0], came)["sha256"]
        if before != came["sha256"]:
            log.warning("%s: is another file than was fetched before, when its sha256 was %s", target, before)
        seen[file.places[0]] = {"size": came["size"], "sha256": came["sha256"]}
        write_json(folder / LEDGER, seen)
    return target


def _ledger(folder: Path) -> dict[str, Any]:
    """A line that is none of ours says nothing."""
    path = folder / LEDGER
    lines = read_object(path) if path.is_file() else {}
    return {place: seen for place, seen in lines.items() if isinstance(seen, dict) and {"size", "sha256"} <= set(seen)}
