"""How a library that embeds is at its best."""

from types import SimpleNamespace

import numpy as np
import pytest

from bench.contenders import embedding


class Maker:
    """Makes what is fast at 16 texts a batch, and for a query alone, unless its attention is sdpa."""

    def __init__(self):
        self.tried = set()
        self.now = 0.0

    def __call__(self, *, batch, attention=None):
        def embed(texts, is_query):
            self.tried.add((batch, attention))
            self.now += 2.0 if attention == "sdpa" or (not is_query and batch != 16) else 1.0
            return np.zeros((len(texts), 2))

        return embed


@pytest.fixture
def make(monkeypatch):
    maker = Maker()
    monkeypatch.setattr(embedding, "time", SimpleNamespace(perf_counter=lambda: maker.now))
    return maker


def test_all_ways_are_tried_and_the_fastest_is_taken(make):
    embed, way = embedding.at_its_best(make, ["a"] * 32, False)
    assert way == "batch 16, eager"
    assert make.tried == {(batch, attention) for batch in (4, 16, 32) for attention in ("sdpa", "eager")}
    make.tried.clear()
    embed(["a"], False)
    assert make.tried == {(16, "eager")}


def test_what_is_known_is_not_tried_again(make):
    embed, way = embedding.at_its_best(make, ["a"] * 32, False, known="batch 4, sdpa")
    assert (way, make.tried) == ("batch 4, sdpa", set())
    embed(["a"], False)
    assert make.tried == {(4, "sdpa")}


def test_queries_come_alone_and_a_runtime_has_one_attention(make):
    assert embedding.at_its_best(make, ["a"] * 4, True)[1] == "alone, eager"
    assert embedding.at_its_best(make, ["a"] * 20, False, attentions=())[1] == "batch 16"
