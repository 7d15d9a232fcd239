"""An index on a GPU: with a FAISS that says it has one, and by torch where FAISS has none."""

import sys
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
import torch

from moe_retrieval import data
from moe_retrieval.retrieval import exact, resident
from moe_retrieval.retrieval.backends import BackendSettings, new_backend
from moe_retrieval.retrieval.exact import Resident, nearest
from moe_retrieval.retrieval.index import Index, build_index
from tests.moe_retrieval.corpora import StandIn, plants


def vectors(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)


def index_of(documents, kind):
    index = new_backend(documents, BackendSettings(kind))
    index.add(documents)
    return index


class Copy:
    """What FAISS would have made of an index for its GPU."""

    def __init__(self, resources, device, index):
        self.resources, self.device, self.index, self.asked = resources, device, index, []

    def search(self, queries, k):
        assert k <= resident.MOST, "FAISS raises here"
        self.asked.append(k)
        return self.index.search(queries, k)


def standing_in(monkeypatch, gpus, copy=Copy):
    made = SimpleNamespace(**vars(faiss))
    made.get_num_gpus, made.StandardGpuResources, made.index_cpu_to_gpu = lambda: gpus, object, copy
    monkeypatch.setitem(sys.modules, "faiss", made)


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_faiss_has_it_on_its_first_gpu(kind, monkeypatch):
    documents, queries = vectors(3000), vectors(7, seed=1)
    index = index_of(documents, kind)
    standing_in(monkeypatch, gpus=1)
    there = resident.resident(index, kind)
    assert (there.copy.index, there.copy.device, there.copy.resources) == (index, 0, there.resources)
    for ours, theirs in zip(there.search(queries, 5), index.search(queries, 5)):
        assert np.array_equal(ours, theirs)
    assert there.search(queries, resident.MOST + 1)[1].shape == (7, resident.MOST + 1)
    assert there.copy.asked == [5], "what is too much for a GPU is the other one's"


def test_hnsw_stays_on_the_cpu(monkeypatch):
    index = index_of(vectors(300), "hnsw")
    standing_in(monkeypatch, gpus=1, copy=None)
    assert resident.resident(index, "hnsw") is index


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_without_a_gpu_it_is_the_index_itself(kind, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    index = index_of(vectors(300), kind)
    assert resident.resident(index, kind) is index
    assert faiss.get_num_gpus() == 0, "the name that is asked for"


def test_a_gpu_without_room_leaves_it_where_it_is(monkeypatch, caplog):
    def full(resources, device, index):
        raise RuntimeError("Error in void* StandardGpuResourcesImpl::allocMemory\nof 3 GB")

    index = index_of(vectors(300), "exact")
    standing_in(monkeypatch, gpus=1, copy=full)
    assert resident.resident(index, "exact") is index
    (message,) = caplog.messages
    assert message.startswith("the index is searched on the CPU: the GPU does not take it (Error in void*")
    assert "\n" not in message


def test_torch_has_an_exact_index_where_faiss_has_no_gpu(monkeypatch):
    """On the same memory, as long as that is needed."""
    documents, queries = vectors(500), vectors(7, seed=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(resident, "Resident", lambda array, device, of: Resident(array, "cpu", of))
    index = index_of(documents, "exact")
    there = resident.resident(index, "exact")
    assert isinstance(there, Resident)
    expected = nearest(queries, documents, 20)
    del index
    for ours, theirs in zip(there.search(queries, 20), expected):
        assert np.allclose(ours, theirs, atol=1e-5)
    for kind in ("ivf", "hnsw"):
        other = index_of(documents, kind)
        assert resident.resident(other, kind) is other
    empty = new_backend(documents[:0], BackendSettings("exact"))
    assert resident.resident(empty, "exact") is empty


@pytest.mark.parametrize("size", [7, 100, 16384])
@pytest.mark.parametrize("k", [1, 10, 200])
def test_what_is_resident_is_searched_like_all_else(k, size, monkeypatch):
    """Also where scores tie, as those of whole numbers do: of equal ones the later row comes first."""
    monkeypatch.setattr(exact, "SLICE", size)
    queries, documents = np.round(vectors(9, seed=1)), np.round(vectors(100))
    documents[40:] = documents[:60]
    there = Resident(documents, "cpu")
    for some in (queries, queries[:1], queries[:0]):
        scores, rows = there.search(some, k)
        expected_scores, expected_rows = nearest(some, documents, k)
        assert np.array_equal(rows, expected_rows)
        assert np.allclose(scores, expected_scores, atol=1e-5)
        assert (scores.dtype, rows.dtype) == (np.float32, np.int64)


def test_an_index_that_is_opened_is_searched_there(tmp_path, monkeypatch):
    documents = data.load(plants(tmp_path / "plants", num_documents=60)).documents
    build_index(StandIn(), documents, tmp_path / "index", model_path="stand-in")
    queries = StandIn().encode_query(["which plant has n4"])
    expected = Index(tmp_path / "index").search(queries, 5)
    standing_in(monkeypatch, gpus=1)
    index = Index(tmp_path / "index")
    assert all(map(np.array_equal, index.search(queries, 5), expected))
    assert index.vectors.copy.asked == [5]
