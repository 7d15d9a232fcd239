"""A model in use: its precision, its batches, its fingerprint, its usage."""

import numpy as np
import pytest
import torch

import moe_retrieval
from moe_retrieval.errors import InputError
from moe_retrieval.models import backbones, export
from moe_retrieval.models.encoder import pack
from moe_retrieval.retrieval.model import Model, fingerprint
from tests.moe_retrieval.tiny import embed, tiny_retriever, tiny_tokenizer, token_lists

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["dense", "sb-moe", "moe", "random"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_computes_what_autocast_computes(name, precision, tmp_path):
    retriever = tiny_retriever(name).eval()
    export.save(tmp_path, retriever, tiny_tokenizer(), "card")
    texts = token_lists(5)
    embeddings = moe_retrieval.load(tmp_path, precision, "cpu").embed_tokens(texts)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    with torch.no_grad(), torch.autocast("cpu", dtype):
        by_modules = retriever(*pack(texts))
        retriever.freeze(dtype)
        assert torch.equal(retriever(*pack(texts)), embeddings)
    retriever.thaw()
    exact = embed(retriever, texts)
    assert ((embeddings - by_modules).norm() / exact.norm()).item() < (1e-2 if precision == "bf16" else 1e-6)
    error = ((embeddings - exact).norm() / exact.norm()).item()
    assert 0 < error < (2e-2 if precision == "bf16" else 3e-3)


def test_the_batch_does_not_matter():
    model = Model(tiny_retriever("sb-moe"), tiny_tokenizer(), "fp32", CPU)
    texts = token_lists(17)
    alone = torch.cat([model.embed_tokens([text]) for text in texts])
    torch.testing.assert_close(model.embed_tokens(texts), alone, rtol=0, atol=1e-6)
    assert model.embed_tokens([]).shape == (0, 24)


def test_the_fingerprint_changes_with_a_weight_and_with_a_setting():
    retriever = tiny_retriever("sb-moe")
    first = fingerprint(retriever)
    assert fingerprint(tiny_retriever("sb-moe")) == first
    assert fingerprint(tiny_retriever("sb-moe", doc_length=17)) != first
    with torch.no_grad():
        retriever.encoder.norm.bias[3] += 1e-6
    assert fingerprint(retriever) != first


@pytest.mark.parametrize("name", ["dense", "sb-moe", "moe-sigmoid", "dense-wide", "random-sb"])
def test_loading_draws_no_weights_that_it_then_replaces(name, tmp_path):
    """Half a second of a search; and whoever loads a model keeps the random numbers that they had coming."""
    retriever = tiny_retriever(name)
    export.save(tmp_path, retriever, tiny_tokenizer(), "card")
    before = torch.get_rng_state()
    loaded = moe_retrieval.load(tmp_path, "fp32", "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    state = retriever.state_dict()
    assert loaded.retriever.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.retriever.state_dict().items())


def test_the_alias_draws_no_weights_either():
    before = torch.get_rng_state()
    moe_retrieval.load("minilm", "fp32", "cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_alias_is_the_real_model():
    model = moe_retrieval.load("minilm", "fp32", "cpu")
    assert (model.usage.query_length, model.usage.doc_length, model.hidden_size) == (256, 256, 384)
    texts = ["a stable sort", "sorting that keeps equal elements in order", "boil the potatoes"]
    a, b, c = model.embed_tokens(model.tokenizer.encode_batch(texts, 64))
    assert a @ b > 0.6 > 0.2 > a @ c
    assert backbones.find("minilm").name == "model"


def test_encode_takes_what_sentence_transformers_takes(monkeypatch, capsys):
    model = Model(
        tiny_retriever("sb-moe", query_prompt="which ", query_length=9, normalize=False), tiny_tokenizer(), "fp32", CPU
    )
    texts = ["sort a tensor", "along one of its dimensions", "", "in the order in which they came " * 9] * 8
    plain = model.encode(texts)
    assert np.array_equal(model.encode(texts, prompt_name="query"), model.encode_query(texts))
    assert np.array_equal(model.encode(texts, prompt_name="document"), model.encode_document(texts))
    assert not np.allclose(np.linalg.norm(plain, axis=1), 1)
    unit = model.encode(texts, normalize_embeddings=True)
    assert np.allclose(unit * np.linalg.norm(plain, axis=1)[:, None], plain, atol=1e-6)
    assert np.allclose(np.linalg.norm(unit, axis=1), 1)
    tensor = model.encode_query(texts, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), model.encode_query(texts))
    monkeypatch.setattr("moe_retrieval.progress.EVERY", 0.001)
    model.encode_document(texts * 50, show_progress_bar=True)
    assert "texts: " in capsys.readouterr().err
    for bad, message in (
        (dict(prompt_name="passage"), "prompt_name must be query, d"),
        (dict(batch_size=0), "at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            model.encode(texts, **bad)


def test_a_batch_is_no_larger_than_so_many_whole_texts(monkeypatch):
    model = Model(tiny_retriever("sb-moe", doc_length=20), tiny_tokenizer(), "fp32", CPU)
    seen = []
    plain = model.embed_tokens
    monkeypatch.setattr(model, "embed_tokens", lambda sequences: seen.append(sequences) or plain(sequences))
    texts = ["in the order in which they came " * 9] * 7 + ["sort"] * 7
    embeddings = model.encode(texts, batch_size=3)
    assert max(sum(map(len, batch)) for batch in seen) == 60
    assert sum(map(len, seen)) == 14
    assert np.allclose(embeddings, model.encode(texts), atol=1e-6)


def test_another_usage_is_another_model():
    model = Model(tiny_retriever("sb-moe"), tiny_tokenizer(), "fp32", CPU)
    before = model.usage
    changed = model.with_usage(query_prompt="which ", doc_length=9, query_length=None)
    assert model.usage == before
    assert changed.usage == before.changed(query_prompt="which ", doc_length=9)
    assert (changed.fingerprint, changed.retriever) == (model.fingerprint, model.retriever)
    assert (changed.encode_query("tensor") == model.encode("which tensor")).all()
    with pytest.raises(InputError, match=r"doc_length must be 3 to 32 .* got 33"):
        model.with_usage(doc_length=33)
    with pytest.raises(ValueError, match=r"with_usage takes query_prompt, .*; got pooling"):
        model.with_usage(pooling="cls")
