from moe_retrieval import data
from moe_retrieval.retrieval.hits import search
from moe_retrieval.retrieval.index import Index, build_index
from tests.moe_retrieval.corpora import StandIn, plants


def test_hits(tmp_path):
    folder = tmp_path
    build_index(StandIn(), data.load(plants(folder / "plants")).documents, folder / "stand-in", model_path="stand-in")
    (hits, none) = search(Index(folder / "stand-in"), StandIn(), ["which plant has n8", "moss"], top_k=3)
    assert [hit.rank for hit in hits] == [1, 2, 3]
    assert hits[0].id == "d8"
    assert hits[0].title == "Plant 8"
    assert hits[0].text.endswith("n8")
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert len(none) == 3
    assert len(search(Index(folder / "stand-in"), StandIn(), ["x"], top_k=500)[0]) == 60
