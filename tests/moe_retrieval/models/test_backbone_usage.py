"""How a backbone is to be used."""

import json

import pytest

from moe_retrieval.errors import InputError
from moe_retrieval.models import backbones
from moe_retrieval.models.backbone_usage import read_usage
from moe_retrieval.models.usage import Usage


def test_usage_comes_from_the_files_then_from_the_name(tmp_path):
    usage = read_usage(backbones.find("minilm"))
    assert usage == Usage("mean", True, "", "", 64, 256)
    folder = tmp_path / "e5-small-v2"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert read_usage(folder) == Usage("mean", True, "query: ", "passage: ")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 50}')
    assert read_usage(folder) == Usage("cls", True, "query: ", "passage: ", 50, 50)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 100}')
    prompts = {"prompts": {"query": "Q: ", "passage": "P: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    assert read_usage(folder) == Usage("cls", True, "Q: ", "P: ", 64, 100)
    (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    with pytest.raises(InputError, match=r"modules\.json has Dense"):
        read_usage(folder)
