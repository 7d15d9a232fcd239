"""Where what was downloaded or extracted is kept, and how it gets there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from types import ModuleType


def cache_dir() -> Path:
    """$MOE_RETRIEVAL_CACHE, or moe_retrieval in the user's cache directory."""
    given = os.environ.get("MOE_RETRIEVAL_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moe_retrieval"


def cache_key(made_by: tuple[ModuleType, ...], *made_of: object) -> str:
    """16 hex digits that change with the source of the modules that make something, and with what they make it of."""
    digest = blake2b(digest_size=8)
    for module in made_by:
        digest.update(Path(str(module.__file__)).read_bytes())
    digest.update(repr(made_of).encode())
    return digest.hexdigest()


def cached_folder(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, filled by `build` if it is not there yet. Processes that race build it twice; one of them wins."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            build(draft)
            draft.chmod(0o755)
            try:
                draft.rename(folder)
            except OSError:
                if not folder.exists():
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder
