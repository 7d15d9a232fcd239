"""The first blocks of an encoder, in the place of the whole."""

import pytest
import torch
from torch import nn

import moe_retrieval
from moe_retrieval.errors import InputError
from moe_retrieval.models import export
from moe_retrieval.models.encoder import pack
from moe_retrieval.models.loading import build_retriever
from tests.moe_retrieval.berts import make_bert
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer

TEXTS = [[5, 9, 200, 7], [11], [30, 31, 32, 33, 34, 35]]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    model = make_bert(hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96)
    folder = tmp_path_factory.mktemp("bert")
    model.save_pretrained(folder)
    return model, folder


def test_they_are_those_of_transformers(bert):
    model, folder = bert
    retriever = build_retriever(f"{folder}:2", folder).eval()
    assert retriever.settings.shape.num_layers == len(retriever.encoder.blocks) == 2
    whole = model.encoder.layer
    model.encoder.layer = nn.ModuleList(list(whole)[:2])
    try:
        with torch.no_grad():
            found_TH = retriever.encoder(*pack(TEXTS))
            expected_TH = torch.cat([model(torch.tensor([text])).last_hidden_state[0] for text in TEXTS])
    finally:
        model.encoder.layer = whole
    torch.testing.assert_close(found_TH, expected_TH, rtol=1e-5, atol=1e-5)


def test_experts_go_into_what_is_left(bert):
    _, folder = bert
    retriever = build_retriever(f"{folder}:3", folder, variant="moe")
    assert retriever.settings.experts.layers == (1,)


def test_more_than_there_are_is_one_line(bert):
    _, folder = bert
    with pytest.raises(InputError, match=r":5: .* has 4 blocks"):
        build_retriever(f"{folder}:5", folder)


def test_a_dense_run_can_be_cut_and_one_with_experts_cannot(tmp_path):
    for variant in ("dense", "moe"):
        export.save(tmp_path / variant, tiny_retriever(variant), tiny_tokenizer(), "card")
    whole = moe_retrieval.load(tmp_path / "dense")
    cut = moe_retrieval.load(f"{tmp_path / 'dense'}:1")
    assert cut.retriever.settings.shape.num_layers == 1 < whole.retriever.settings.shape.num_layers
    assert abs(cut.encode(["a word"]) - whole.encode(["a word"])).max() > 1e-3
    with pytest.raises(InputError, match="expected a dense encoder to cut"):
        moe_retrieval.load(f"{tmp_path / 'moe'}:1")
