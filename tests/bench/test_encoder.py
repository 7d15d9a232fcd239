"""The cases of a whole encoder: what is counted of its work, and where its time goes."""

import pytest
import torch

from bench.cases import backbone, stages
from bench.contenders import our_model


def test_useful_flops():
    """The tiny BERT: 2 blocks of 4 * 32 * 32 + 2 * 32 * 64 weights; attention multiplies two squares of the length."""
    model = our_model.build(backbone.folder(True), "dense", "fp32", torch.device("cpu"))
    lengths = [len(model.tokenizer.encode_batch([text], 256)[0]) for text in ("ba co", "di")]
    by_hand = sum(2 * 2 * (4 * 32 * 32 + 2 * 32 * 64) * n + 2 * 2 * 2 * 32 * n * n for n in lengths)
    assert our_model.flops(model, ["ba co", "di"]) == by_hand


def test_the_stages_add_up_to_the_whole():
    ops = {"aten::addmm": 0.4, "aten::mm": 0.1, "moe_retrieval_cpu::attention": 0.2, "aten::cumsum": 0.05}
    found = stages.table(1.0, 0.1, ops)
    rows = {row["stage"]: row for row in found["stages"]}
    shares = {name: row["share"] for name, row in rows.items()}
    assert shares == pytest.approx(
        {
            "matrix products": 0.5,
            "moe_retrieval_cpu::attention": 0.2,
            stages.REST: 0.15,
            "tokenise": 0.1,
            "other ops": 0.05,
        }
    )
    assert rows["matrix products"]["ops"] == ["aten::addmm", "aten::mm"]
    assert found["stages"][0]["stage"] == "matrix products"


def test_a_profile_sees_the_encoder():
    model = our_model.build(backbone.folder(True), "dense", "fp32", torch.device("cpu"))
    found = stages.profile(model, ["ba co di", "fe"])
    spent = {row["stage"]: row["ms"] for row in found["stages"]}
    assert spent["matrix products"] > 0
    assert sum(spent.values()) == pytest.approx(found["wall_ms"], abs=0.01 * len(spent))
