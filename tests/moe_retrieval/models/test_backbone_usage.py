"""How a backbone is to be used."""

import json

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import moe_retrieval
from moe_retrieval.errors import InputError
from moe_retrieval.models import backbones
from moe_retrieval.models.backbone_usage import read_usage
from moe_retrieval.models.usage import Usage


def test_usage_comes_from_the_files_then_from_the_name(tmp_path):
    usage = read_usage(backbones.find("minilm"))
    assert usage == Usage("mean", True, "", "", 256, 256)
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
    assert read_usage(folder) == Usage("cls", True, "Q: ", "P: ", 100, 100)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')
    assert read_usage(folder) == Usage("cls", True, "Q: ", "P: ", 512, 512)
    (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    with pytest.raises(InputError, match=r"modules\.json has Dense"):
        read_usage(folder)


@pytest.mark.parametrize("length", ["256", 0, -1, True, 1.5, [256], {}])
def test_a_length_that_is_none_is_refused(length, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    with pytest.raises(InputError, match="expected a max_seq_length that is an int of at least 1, got "):
        read_usage(tmp_path)


def test_questions_are_read_as_far_as_the_backbone_reads(tmp_path):
    """sentence-transformers, on the same files, says how far that is."""
    model = moe_retrieval.load("minilm", "fp32", "cpu")
    theirs = SentenceTransformer(str(backbones.find("minilm")), device="cpu")
    long = "how does the third of the words that come after two hundred others change what is found " * 20
    for question in (long, " ".join(long.split()[:120])):
        assert np.allclose(model.encode_query([question]), theirs.encode([question]), atol=1e-5)
