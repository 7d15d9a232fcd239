import numpy as np

from moe_retrieval.evaluation.metrics import Measures
from moe_retrieval.evaluation.table import table


def test_the_table():
    worse = Measures({"NDCG@10": 0.5}, {"NDCG@10": np.zeros(40)})
    better = Measures({"NDCG@10": 0.75}, {"NDCG@10": np.ones(40)})
    assert table({"dense": worse, "ours": better}, "dense", ["NDCG@10"]).split("\n") == [
        "|       | NDCG@10 | p against dense |",
        "| ---   | ---     | ---             |",
        "| dense | 0.500   |                 |",
        "| ours  | 0.750   | <0.0001         |",
    ]
