"""The cache of a hub that is out of reach, laid out as huggingface_hub leaves it."""

from pathlib import Path

from huggingface_hub import constants


def write_repository(cache: Path, monkeypatch, revision: str = "a" * 40) -> Path:
    """-> the folder of the files of some/model at this revision, its newest, with an empty config.json"""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = cache / "models--some--model"
    folder = repository / "snapshots" / revision
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(revision)
    return folder
