"""What is seen of a model, against each text alone and a routing by hand."""

import numpy as np
import pytest
import torch

from moe_retrieval.analysis.observation import Observer
from moe_retrieval.models.encoder import pack
from moe_retrieval.retrieval import encode
from tests.moe_retrieval.by_hand import logits_of, weights_of
from tests.moe_retrieval.gardens import gardens, model_with_experts

ROUTED = ["sb-moe", "sb-moe-all", "moe", "moe-sigmoid"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    collection = gardens(tmp_path_factory.mktemp("gardens"))
    return [*collection.documents.texts, ""]


DOMAINS = torch.arange(49) % 3


def inputs_of(model, name, ids):
    """What goes into a layer of experts for one text."""
    caught = []
    layer = model.retriever.get_submodule(name)
    hook = layer.register_forward_hook(lambda module, arguments, output: caught.append(arguments[0]))
    model.retriever.thaw()
    with torch.no_grad():
        model.retriever(*pack([ids]))
    hook.remove()
    return caught[0]


@pytest.mark.parametrize("variant", ROUTED)
def test_load_terms_and_confidence_are_those_of_each_text_alone(variant, texts, monkeypatch):
    monkeypatch.setattr(encode, "WINDOW", 20)
    model = model_with_experts(variant)
    seen = Observer(model, 3).observe(texts, "document", DOMAINS)
    sequences = model.tokenizer.encode_batch(texts, model.usage.doc_length)
    assert set(seen.layers) == {name for name, _ in model.retriever.expert_layers().items()}
    for name, layer in model.retriever.expert_layers().items():
        had, terms = np.zeros((3, layer.num_experts)), {}
        for number, (text, ids) in enumerate(zip(texts, sequences)):
            x = inputs_of(model, name, ids)
            with torch.no_grad():
                weights, logits = weights_of(layer, x), logits_of(layer, x)
            is_all = layer.top_k == "all"
            share = (weights / weights.sum(1, keepdim=True) if is_all else (weights > 0) / layer.top_k).numpy()
            had[DOMAINS[number]] += share.sum(0)
            assert seen.layers[name].expert_N[number] == share.sum(0).argmax()
            scores = logits.sigmoid() if layer.router_kind == "sigmoid" else logits.exp()
            sure = (scores / scores.sum(1, keepdim=True)).amax(1).mean()
            assert seen.layers[name].confidence_N()[number] == pytest.approx(sure.item(), abs=1e-5)
            words = {word for word in text.split() if len(word) > 1} if name == "block" else ids
            for word, part in zip(words, np.repeat(share, len(words), 0) if name == "block" else share):
                terms[word] = terms.get(word, 0) + part
        np.testing.assert_allclose(seen.layers[name].share_DE.numpy(), had, atol=1e-4)
        check_terms(Observer(model, 3), name, texts, terms)


def check_terms(observer, name, texts, expected):
    counts = observer.observe(texts, "document", DOMAINS).layers[name].terms.counts_VE.numpy()
    named = observer.term_names(name)
    assert np.isclose(counts.sum(), sum(part.sum() for part in expected.values()))
    found = {named(number): counts[number] for number in np.flatnonzero(counts.sum(1))}
    if name != "block":
        expected = {observer.model.tokenizer.token(number): part for number, part in expected.items()}
    assert found.keys() == expected.keys()
    for term, part in expected.items():
        np.testing.assert_allclose(found[term], part, atol=1e-4)


@pytest.mark.parametrize("variant", ["random", "random-sb"])
def test_of_a_hash_the_load_is_seen_and_no_confidence(variant, texts):
    model = model_with_experts(variant)
    observer = Observer(model, 3)
    seen = observer.observe(texts, "document", DOMAINS)
    sequences = model.tokenizer.encode_batch(texts, model.usage.doc_length)
    for name, layer in model.retriever.expert_layers().items():
        passed = seen.layers[name]
        assert passed.confidence_N() is None
        tokens = [0, 0, 0]
        for number, ids in enumerate(sequences):
            tokens[DOMAINS[number]] += 1 if name == "block" else len(ids)
        assert passed.count_D.tolist() == tokens
        assert passed.share_DE.sum(1).tolist() == pytest.approx(tokens)
        if name != "block":  # a token goes to the same experts wherever it stands
            counts = passed.terms.counts_VE
            assert set((counts[counts.sum(1) > 0] > 0).sum(1).tolist()) == {layer.top_k}
    assert seen.pooled_NH is None


@pytest.mark.parametrize("variant", [*ROUTED, "random", "random-sb", "dense"])
def test_embeddings_are_the_models_own_and_it_is_left_as_it_was(variant, texts):
    model = model_with_experts(variant)
    before = model.encode_document(texts)
    was_frozen = model.retriever.serving() is not None
    seen = Observer(model, 3).observe(texts, "document", DOMAINS)
    np.testing.assert_allclose(seen.embeddings_NH, before, atol=1e-5)
    assert np.array_equal(model.encode_document(texts), before)
    assert (model.retriever.serving() is not None) == was_frozen
    for layer in model.retriever.expert_layers().values():
        assert not layer._forward_hooks
        assert getattr(layer, "recorder", None) is None


@pytest.mark.parametrize("variant", ["sb-moe", "sb-moe-all"])
def test_what_went_into_the_pooled_layer_gives_the_embeddings(variant, texts):
    model = model_with_experts(variant)
    seen = Observer(model, 3).observe(texts, "document", DOMAINS)
    with torch.inference_mode():
        again = model.retriever.finish(torch.from_numpy(seen.pooled_NH))
    np.testing.assert_allclose(again.numpy(), seen.embeddings_NH, atol=1e-6)


def test_before_the_pooled_layer_the_encoder_is_one_native_pass(monkeypatch):
    """Where there is one at all: with modules it takes half as long again."""
    model = model_with_experts("sb-moe")
    if model.retriever.serving() is None:
        pytest.skip("no native pass here")
    monkeypatch.setattr(type(model.retriever.encoder), "forward", None)
    assert Observer(model, 1).observe(["moss"], "query", torch.tensor([0])).pooled_NH.any()
