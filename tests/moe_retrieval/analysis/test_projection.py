"""A sample of embeddings in two dimensions: against an oracle, and with everything that is told of a point."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from moe_retrieval.analysis import projection
from moe_retrieval.analysis.domains import find_domains
from moe_retrieval.analysis.projection import describe_map, neighbour_embedding, principal_components
from tests.moe_retrieval.gardens import gardens


def drawn(count, size=6, seed=0):
    return np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32) * np.arange(1, size + 1)


def test_the_components_are_those_of_another_library_up_to_their_signs():
    x = drawn(50)
    ours, theirs = principal_components(x), PCA(2).fit_transform(x.astype(np.float64))
    for axis in (0, 1):
        assert np.allclose(ours[:, axis], theirs[:, axis]) or np.allclose(ours[:, axis], -theirs[:, axis])
    assert np.array_equal(principal_components(x), ours)
    assert np.allclose(principal_components(x + 5), ours)  # wherever they all lie


@pytest.mark.parametrize("shape", [(1, 4), (2, 1), (5, 1)])
def test_what_has_fewer_directions_is_flat(shape):
    found = principal_components(drawn(*shape))
    assert found.shape == (shape[0], 2)
    assert not found[:, 1].any()


def test_neighbours_stay_neighbours():
    x = np.concatenate([drawn(20), drawn(20, seed=1) + 100])
    found = neighbour_embedding(x)
    middle = [found[:20].mean(0), found[20:].mean(0)]
    own = np.linalg.norm(found - np.repeat(middle, 20, 0), axis=1)
    other = np.linalg.norm(found - np.repeat(middle[::-1], 20, 0), axis=1)
    assert (own < other).all()


def test_few_texts_or_no_library_have_no_t_sne(monkeypatch):
    assert neighbour_embedding(drawn(7)) is None
    assert neighbour_embedding(np.ones((40, 3), np.float32)) is None
    assert neighbour_embedding(drawn(8)) is not None
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    assert neighbour_embedding(drawn(8)) is None


@pytest.fixture
def seen(tmp_path):
    """A collection, and what was observed of it."""
    collection = gardens(tmp_path)
    domains = find_domains(collection, "test", range(48))
    sides = {
        side: SimpleNamespace(
            embeddings_NH=drawn(count), layers={"block": SimpleNamespace(expert_N=np.arange(count) % 3)}
        )
        for side, count in (("query", 16), ("document", 48))
    }
    return collection, domains, sides


def test_each_point_is_told_with_its_text_domain_and_expert(seen, monkeypatch):
    monkeypatch.setattr(projection, "MOST", {"query": 5, "document": 9})
    collection, domains, sides = seen
    found = describe_map(collection, "test", range(48), sides, domains)
    assert found["side"] == ["query"] * 5 + ["document"] * 9
    queries, documents = found["id"][:5], found["id"][5:]
    assert len({*queries, *documents}) == 14
    for name, text, domain, expert in zip(*(found[key] for key in ("id", "text", "domain")), found["expert"]["block"]):
        number = int(name[1:])
        answer = 3 * number if name[0] == "q" else number
        assert expert == number % 3
        assert text.split()[0] == f"n{answer}"
        assert domain == (["pond", "wood", "pond", None, "wood", "pond"][answer % 6] or "(none)")
    assert {len(axis) for projected in ("pca", "tsne") for axis in found[projected].values()} == {14}
    assert found["id"] == describe_map(collection, "test", range(48), sides, domains)["id"]


def test_all_of_few_are_drawn_and_places_are_those_of_the_candidates(seen):
    collection, domains, sides = seen
    pool = range(0, 48, 3)
    sides["document"].embeddings_NH = drawn(16)
    sides["document"].layers["block"].expert_N = np.arange(16)
    domains = find_domains(collection, "test", pool)
    found = describe_map(collection, "test", pool, sides, domains)
    assert found["id"] == [*(f"q{i}" for i in range(16)), *(f"d{3 * i}" for i in range(16))]
    assert found["expert"]["block"][16:] == list(range(16))
    x = np.concatenate([side.embeddings_NH for side in sides.values()])
    assert np.allclose(np.array([found["pca"]["x"], found["pca"]["y"]]).T, principal_components(x), atol=1e-4)
    assert isinstance(domains.queries_Q, torch.Tensor)
