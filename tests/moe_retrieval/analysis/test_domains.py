"""Where texts are from."""

import torch

from moe_retrieval import data
from moe_retrieval.analysis.domains import MOST, find_domains
from moe_retrieval.progress import Meter
from tests.moe_retrieval.corpora import plants, write_beir
from tests.moe_retrieval.gardens import gardens


def test_documents_say_it_and_queries_are_of_what_answers_them(tmp_path):
    domains = find_domains(gardens(tmp_path), "test", range(48))
    assert domains.names == ["pond", "wood", "(none)"]  # 24, 16 and 8 documents
    assert domains.documents_N.tolist() == [0, 1, 0, 2, 1, 0] * 8
    assert domains.queries_Q.tolist() == [0, 2] * 8  # of documents 0, 3, 6, ...
    assert domains.are_told_apart
    some = find_domains(gardens(tmp_path), "test", [1, 4, 7])
    assert some.names == ["wood", "pond", "(none)"]
    assert some.documents_N.tolist() == [0, 0, 0]
    assert some.queries_Q.tolist() == [1, 2] * 8


def test_looking_through_millions_of_documents_says_how_far_it_is(tmp_path, monkeypatch):
    said, start = [], Meter.start
    monkeypatch.setattr(Meter, "start", lambda meter: (said.append((meter.label, meter.total)), start(meter))[1])
    find_domains(gardens(tmp_path), "test", range(48))
    assert said[-1] == ("domains", 48)


def test_what_is_in_no_domain_is_in_one(tmp_path):
    domains = find_domains(data.load(plants(tmp_path)), "test", range(60))
    assert domains.names == ["(none)"]
    assert not domains.are_told_apart
    assert torch.equal(domains.documents_N, torch.zeros(60, dtype=torch.int64))


def test_of_many_domains_the_small_ones_are_one(tmp_path):
    names = [f"large{i}" for i in range(MOST - 1)] * 2 + [f"small{i}" for i in range(9)]
    domains = find_domains(gardens(tmp_path, documents=len(names), domains=names), "test", range(len(names)))
    assert domains.names == [*(f"large{i}" for i in range(MOST - 1)), "(others)"]
    assert domains.documents_N.tolist()[-9:] == [MOST - 1] * 9


def test_a_query_that_nothing_answers_is_of_none(tmp_path):
    folder = write_beir(tmp_path, {"a": "moss"}, {"p": "x", "q": "y"}, {"test": {"p": {"a": 0}, "q": {"gone": 1}}})
    assert find_domains(data.load(folder), "test", range(1)).queries_Q.tolist() == [0, 0]
