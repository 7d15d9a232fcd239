"""To disk and back, through the real AutoModel and SentenceTransformer."""

import json

import pytest
import torch

import kernels
import moe_retrieval
from moe_retrieval.errors import InputError
from moe_retrieval.models import backbones, export
from moe_retrieval.models.card import model_card
from moe_retrieval.models.encoder import pack
from moe_retrieval.models.retriever import RetrieverSettings
from moe_retrieval.models.tokenizer import load_tokenizer
from moe_retrieval.retrieval.model import Model
from tests.moe_retrieval.tiny import VARIANTS, embed, tiny_retriever, tiny_tokenizer

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("pooling", ["mean", "mean-max"])
def test_a_round_trip_keeps_every_bit(name, pooling, tmp_path):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    usage = dict(pooling=pooling, query_prompt="query: ", query_length=9, doc_length=16)
    retriever = tiny_retriever(name, **usage)
    export.save(tmp_path, retriever, tiny_tokenizer(), model_card(retriever, "tiny", "words", {"steps": 3}))
    texts = ["sort a tensor", "", "Keep equal ROWS in order! " * 5]

    model = moe_retrieval.load(tmp_path, "fp32", "cpu")
    assert model.settings == retriever.settings
    assert model.fingerprint == Model(retriever, tiny_tokenizer(), "fp32", CPU).fingerprint
    ids = model.tokenizer.encode_batch(texts, model.usage.doc_length)
    embeddings = model.embed_tokens(ids)
    assert torch.equal(embeddings, embed(retriever, ids))
    assert embeddings.shape == (3, model.hidden_size)
    assert model.hidden_size == (48 if "max" in pooling else 24)

    theirs = AutoModel.from_pretrained(tmp_path).eval()
    width = max(map(len, ids))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    with torch.no_grad():
        output = theirs(padded, mask)
        hidden = model.retriever.hidden_states(*pack(ids), model.retriever.serving())
        assert torch.equal(output.last_hidden_state[mask.bool()], hidden)
    assert torch.equal(output.pooler_output, embeddings)
    assert not output.last_hidden_state[~mask.bool()].any()

    sentences = SentenceTransformer(str(tmp_path), device="cpu")
    assert sentences.max_seq_length == 16
    again = torch.tensor(sentences.encode(texts))  # in its own order of length
    torch.testing.assert_close(again, embeddings, rtol=0, atol=1e-6)
    query = sentences.encode_query("sort a tensor", convert_to_tensor=True)
    (expected,) = model.embed_tokens(model.tokenizer.encode_batch(["query: sort a tensor"], 16))
    torch.testing.assert_close(query, expected, rtol=0, atol=1e-6)

    theirs.save_pretrained(tmp_path / "again")
    tiny_tokenizer().save(tmp_path / "again")
    assert torch.equal(moe_retrieval.load(tmp_path / "again", "fp32", "cpu").embed_tokens(ids), embeddings)


def test_what_runs_of_any_age_rely_on():
    """The usage stands flat among the saved settings, and the pooled layer's weights are called block."""
    retriever = tiny_retriever("sb-moe", pooling="cls", doc_length=16)
    saved = retriever.settings.to_dict()
    assert list(saved) == [
        "shape", "variant", "family", "experts",
        "pooling", "normalize", "query_prompt", "doc_prompt", "query_length", "doc_length",
    ]  # fmt: skip
    assert RetrieverSettings.from_dict(saved) == retriever.settings
    with pytest.raises(InputError, match="unknown settings usage; a newer version wrote them"):
        RetrieverSettings.from_dict(saved | {"usage": {}})
    assert {name.split(".")[0] for name in retriever.state_dict()} == {"encoder", "block"}


def test_what_automodel_loads_can_be_trained(tmp_path):
    from transformers import AutoModel

    export.save(tmp_path, tiny_retriever("moe"), tiny_tokenizer(), "card")
    model = AutoModel.from_pretrained(tmp_path).train()
    loss = model(torch.randint(5, 400, (2, 7))).pooler_output.sum() + kernels.aux_loss(model)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_broken_run_is_one_clear_line(tmp_path):
    export.save(tmp_path, tiny_retriever("moe"), tiny_tokenizer(), "card")
    config = json.loads((tmp_path / "config.json").read_text())
    config["retriever"]["shape"]["ffn_size"] = 41
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"the weights do not fit config.json") as caught:
        moe_retrieval.load(tmp_path)
    assert "\n" not in str(caught.value)
    del config["retriever"]["shape"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config.json does not describe a retriever"):
        moe_retrieval.load(tmp_path)
    with pytest.raises(InputError, match="precision must be one of auto, bf16, fp16, fp32; got 'fp8'"):
        moe_retrieval.load(tmp_path, "fp8")


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    export.save(tmp_path, tiny_retriever(), backbone_tokenizer(), "card")
    with pytest.raises(InputError, match="the tokenizer has 30522 tokens and the model embeds 400"):
        moe_retrieval.load(tmp_path)


def backbone_tokenizer():
    return load_tokenizer(backbones.find("minilm"))
