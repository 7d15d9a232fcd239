"""A model without an expert, against one whose router gives that expert minus infinity."""

import copy

import numpy as np
import pytest
import torch

import kernels
from moe_retrieval.analysis.domains import find_domains
from moe_retrieval.analysis.observation import Observer
from moe_retrieval.analysis.removal import Ranked, describe_removals, removable, removed, without_expert
from tests.moe_retrieval.by_hand import ByHand, output_of
from tests.moe_retrieval.gardens import gardens, model_with_experts

LAYERS = {
    "renormalised": lambda: kernels.MoE(12, 20, num_experts=4, top_k=2),
    "over all": lambda: kernels.MoE(12, 20, num_experts=4, top_k=2, renormalize=False),
    "over the chosen": lambda: kernels.MoE(12, 20, num_experts=4, top_k=3, router="topk_softmax"),
    "sigmoid": lambda: kernels.MoE(12, 20, num_experts=4, top_k=2, router="sigmoid"),
    "all": lambda: kernels.MoE(12, 20, num_experts=4, top_k="all"),
    "mlp and noise": lambda: kernels.MoE(12, 20, num_experts=4, top_k=1, gate="mlp", noise=True),
    "pooled": lambda: kernels.SBMoE(12, 20, num_experts=4),
    "pooled and normalised": lambda: kernels.SBMoE(12, 20, num_experts=4, top_k=2, combine="normalized"),
}


@pytest.mark.parametrize("expert", [0, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_without_an_expert(name, expert):
    torch.manual_seed(0)
    layer, x = LAYERS[name]().eval(), torch.randn(40, 12)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        if layer.router.balance_bias is not None:
            layer.router.balance_bias += torch.tensor([0.3, -0.2, 0.1, 0.2])
        before = layer(x)
        torch.testing.assert_close(before, ByHand(layer)(x), atol=1e-5, rtol=1e-5)
        smaller = without_expert(layer, expert)
        torch.testing.assert_close(smaller(x), ByHand(layer, expert)(x), atol=1e-5, rtol=1e-5)
        assert torch.equal(layer(x), before)
    assert smaller.num_experts == 3


def test_of_two_experts_that_both_run_one_is_left():
    layer, x = kernels.MoE(12, 20, num_experts=2, top_k=2).eval(), torch.randn(5, 12)
    alone = without_expert(layer, 0)
    assert (alone.num_experts, alone.top_k) == (1, 1)
    with torch.no_grad():
        torch.testing.assert_close(alone(x), output_of(layer, 1, x), atol=1e-5, rtol=1e-5)


def observed(model, collection):
    domains = find_domains(collection, "test", range(len(collection.documents)))
    observer = Observer(model, len(domains.names))
    asked = list(collection.queries("test").values())
    queries = observer.observe(asked, "query", domains.queries_Q)
    documents = observer.observe(collection.documents.texts, "document", domains.documents_N)
    return Ranked(collection, "test", "full", queries, documents)


def ndcg_by_hand(model, collection):
    """Of each query, which one document answers."""
    documents = model.encode_document(list(collection.documents.texts))
    queries = model.encode_query(list(collection.queries("test").values()))
    found = []
    for scores, judged in zip(queries @ documents.T, collection.qrels("test").values()):
        (answer,) = judged
        rank = 1 + int((scores > scores[collection.documents.row(answer)]).sum())
        found.append(1 / np.log2(rank + 1) if rank <= 10 else 0.0)
    return np.array(found)


@pytest.mark.parametrize("variant", ["sb-moe", "sb-moe-all", "moe", "moe-sigmoid"])
def test_the_ranking_without_each_expert(variant, tmp_path):
    model, collection = model_with_experts(variant), gardens(tmp_path)
    ranked = observed(model, collection)
    experts = removable(model.retriever, ranked.documents)
    assert set(experts) == {
        (name, expert) for name, layer in model.retriever.expert_layers().items() for expert in range(layer.num_experts)
    }
    rows = describe_removals(model, ranked, experts)
    before = ndcg_by_hand(model, collection)
    for row in rows:
        other = copy.copy(model)
        other.retriever = copy.deepcopy(model.retriever)
        owner, _, field = row["layer"].rpartition(".")
        layer = other.retriever.get_submodule(row["layer"])
        setattr(other.retriever.get_submodule(owner), field, ByHand(layer, row["expert"]))
        expected = ndcg_by_hand(other, collection)
        assert row["ndcg_at_10"] == pytest.approx(expected.mean())
        assert row["difference"] == pytest.approx((expected - before).mean())
        assert row["queries_changed"] == np.sum(expected != before)
    assert any(row["queries_changed"] for row in rows)
    shares = [row["share"] for row in rows]
    assert shares == sorted(shares, reverse=True)


def test_the_layer_is_whole_again_even_after_an_error():
    model = model_with_experts("moe")
    name, layer = next(iter(model.retriever.expert_layers().items()))
    before = model.encode(["moss and fern"])
    with pytest.raises(KeyError), removed(model.retriever, name, 1):  # noqa: PT012
        assert model.retriever.get_submodule(name).num_experts == 3
        assert not np.allclose(model.encode(["moss and fern"]), before)
        raise KeyError
    assert model.retriever.get_submodule(name) is layer
    np.testing.assert_allclose(model.encode(["moss and fern"]), before, atol=1e-5)


@pytest.mark.parametrize("variant", ["random", "dense"])
def test_what_no_router_chose_cannot_be_removed(variant, tmp_path):
    model = model_with_experts(variant)
    assert removable(model.retriever, observed(model, gardens(tmp_path)).documents) == []
