"""Exact search: against a sort of all scores, over blocks, and the same on any number of ranks."""

import sys
import tracemalloc

import numpy as np
import pytest

from moe_retrieval.errors import InputError
from moe_retrieval.retrieval import exact
from moe_retrieval.retrieval.exact import nearest
from tests.moe_retrieval.ranks import run_ranks


def some_vectors(queries=9, documents=100, duplicates=True):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((documents, 16)).astype(np.float32)
    if duplicates:
        vectors[40:] = vectors[:60]
    return rng.standard_normal((queries, 16)).astype(np.float32), vectors


@pytest.mark.parametrize("search", ["_search_on_cpu", "_search_on_gpu"])
@pytest.mark.parametrize("k, size", [(1, 100), (10, 7), (30, 33), (100, 16384), (500, 30)])
def test_against_a_sort(k, size, search, monkeypatch):
    monkeypatch.setattr(exact, "SLICE", size)
    monkeypatch.setattr(exact, "_search_on_cpu", getattr(exact, search))
    queries, documents = some_vectors(duplicates=False)
    scores, rows = nearest(queries, documents, k)
    expected = np.argsort(-(queries.astype(np.float64) @ documents.T), axis=1)[:, :k]
    assert np.array_equal(rows, expected)
    assert scores.dtype == np.float32
    assert np.allclose(scores, np.take_along_axis(queries @ documents.T, expected, axis=1), atol=1e-5)


@pytest.mark.parametrize("search", ["_search_on_cpu", "_search_on_gpu"])
@pytest.mark.parametrize("k", [1, 5, 7, 13, 20])
def test_of_equal_scores_the_later_row_comes_first(k, search, monkeypatch):
    """Also where only some of the equals are among the first k."""
    monkeypatch.setattr(exact, "SLICE", 7)
    monkeypatch.setattr(exact, "_search_on_cpu", getattr(exact, search))
    documents = np.ones((20, 4), np.float32)
    documents[3] *= 2
    _, rows = nearest(np.ones((2, 4), np.float32), documents, k)
    assert rows.tolist() == [[3, *(row for row in range(19, -1, -1) if row != 3)][:k]] * 2


def test_the_memory_that_ties_take_does_not_grow_with_the_queries(monkeypatch):
    """It is less than the scores alone of all queries would be."""
    monkeypatch.setattr(exact, "SETTLED_TOGETHER", 4)
    queries, documents = np.ones((64, 4), np.float32), np.ones((500, 4), np.float32)
    all_scores = queries @ documents.T
    nearest(queries, documents, 3)  # imports FAISS
    tracemalloc.start()
    _, rows = nearest(queries, documents, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows.tolist() == [[499, 498, 497]] * 64
    assert peak < all_scores.nbytes


def test_no_query_and_no_document():
    queries, documents = some_vectors()
    assert nearest(queries[:0], documents, 5)[1].shape == (0, 5)
    assert nearest(queries, documents[:0], 5)[1].shape == (9, 0)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        nearest(queries, documents, 0)


def search_on_a_rank(folder):
    exact.SLICE = 13
    return nearest(*some_vectors(), 20, shard=True)


def test_ranks_find_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(exact, "SLICE", 13)
    (alone,) = run_ranks(1, search_on_a_rank, tmp_path)
    for scores, rows in run_ranks(4, search_on_a_rank, tmp_path):
        assert np.array_equal(scores, alone[0])
        assert np.array_equal(rows, alone[1])


def test_without_faiss_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match="FAISS is not installed: pip install"):
        nearest(*some_vectors(), 5)
