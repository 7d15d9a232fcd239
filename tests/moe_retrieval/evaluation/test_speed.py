"""The speeds of a model are what its embedding takes, and nothing is said in between."""

import logging
from types import SimpleNamespace

import pytest

from moe_retrieval import data
from moe_retrieval.evaluation import speed
from tests.moe_retrieval.corpora import StandIn, plants


class Clock:
    """A second passes at each text that is embedded, and a tenth at each call."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Slow(StandIn):
    def __init__(self, clock):
        super().__init__()
        self.clock, self.first = clock, True

    def embed_tokens(self, sequences):
        self.clock.now += len(sequences) + 0.1 + 100 * self.first
        self.first = False
        return super().embed_tokens(sequences)


def test_speeds_are_of_many_documents_together_and_of_one_question_alone(tmp_path, monkeypatch, caplog):
    clock = Clock()
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=clock))
    collection = data.load(str(plants(tmp_path / "plants")))
    model = Slow(clock)
    model.usage = model.usage.changed(query_length=3)  # every question is cut, which is no news fifty times
    with caplog.at_level(logging.WARNING, "moe_retrieval"):
        found = speed.measure_speed(model, collection, "test")
        assert logging.getLogger("moe_retrieval").level == logging.WARNING
    assert found == {"documents_per_second": pytest.approx(60 / 60.1), "query_ms": pytest.approx(1100)}
    assert caplog.records == []


def test_documents_are_from_all_of_the_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "DOCUMENTS", 4)
    read = []
    encode = speed.encode_texts
    monkeypatch.setattr(
        speed, "encode_texts", lambda model, texts, kind: read.append(list(texts)) or encode(model, texts, kind)
    )
    collection = data.load(str(plants(tmp_path / "plants")))
    speed.measure_speed(StandIn(), collection, "test")
    (together,) = [texts for texts in read if len(texts) == 4]
    assert [text.split()[-1] for text in together] == ["n0", "n19", "n39", "n59"]
