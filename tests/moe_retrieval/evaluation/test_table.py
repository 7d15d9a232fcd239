import numpy as np

from moe_retrieval.evaluation.metrics import Measures
from moe_retrieval.evaluation.stopwatch import Stopwatch
from moe_retrieval.evaluation.table import markdown, table


def measures(values):
    return Measures({"NDCG@10": float(np.mean(values))}, {"NDCG@10": np.asarray(values, dtype=float)})


def test_the_table():
    watch = Stopwatch(600)
    watch.seconds["ours"] = 2.0
    shown = table({"dense": measures(np.zeros(40)), "ours": measures(np.ones(40))}, ["dense"], ["NDCG@10"], watch)
    assert shown.split("\n") == [
        "|       | NDCG@10 | 95% interval | p against dense | time to rank        |",
        "| ---   | ---     | ---          | ---             | ---                 |",
        "| dense | 0.000   | 0.000–0.000  |                 |                     |",
        "| ours  | 1.000   | 1.000–1.000  | <0.0001         | 2.0 s (300 texts/s) |",
    ]


def test_a_p_stands_only_where_it_could_say_something():
    """Of 5 queries that differ, the exact test has 2^5 patterns: no p is below 2 / 32."""
    base = np.zeros(40)
    few, enough = base.copy(), base.copy()
    few[:5] = enough[:6] = 1.0
    assert "p against" not in table({"a": measures(base), "b": measures(few)}, ["a"], ["NDCG@10"])
    shown = table({"a": measures(base), "b": measures(few), "c": measures(enough)}, ["a"], ["NDCG@10"]).split("\n")
    assert [line.split("|")[4].strip() for line in shown[2:]] == ["", "", f"{2 / 2**6:.4f}"]


def test_a_speed_is_not_that_of_embeddings_that_were_there():
    watch = Stopwatch(600)
    with watch.timing("ours", resumed=True):
        pass
    assert watch.shown("ours") == "0.0 s (with embeddings from before)"


def test_a_name_that_others_gave_stays_in_its_cell():
    assert markdown({"": ["a|b", "two\nlines"], "x": ["1", ""]}).split("\n")[2:] == [
        "| a\\|b      | 1   |",
        "| two lines |     |",
    ]
