"""The native path's table: its verdicts, what it counts, and what becomes of its file."""

import json

import pytest
import torch

from bench import backbone, embedders, stages
from bench.cpu_encoder import Target, judge_memory, judge_quality, merge, useful_flops
from bench.timing import Timings


@pytest.mark.parametrize("peer, holds", [([4.0, 4.2, 4.1], True), ([4.0, 3.9, 3.8], False)])
def test_at_least_so_many_times_as_fast(peer, holds):
    found = Target("ours", "peer", least=4.0).judge(Timings({"ours": [1.0, 1.0, 1.0], "peer": peer}))
    assert (found["median"], found["holds"]) == (sorted(peer)[1], holds)
    assert found["minimum"] == min(peer)


@pytest.mark.parametrize("ours, holds", [([1.02, 1.03, 1.04], True), ([1.02, 1.04, 1.05], False)])
def test_at_most_so_much_of_a_time(ours, holds):
    found = Target("ours", "peer", most=1.03).judge(Timings({"ours": ours, "peer": [1.0, 1.0, 1.0]}))
    assert (found["median"], found["minimum"], found["holds"]) == (ours[1], 1.02, holds)


def test_a_slow_moment_of_the_machine_changes_no_verdict():
    timings = Timings({"ours": [1.0, 9.0, 1.0], "peer": [2.0, 18.0, 2.0]})
    assert Target("ours", "peer", least=2.0).judge(timings)["holds"]
    assert Target("peer", "ours", most=2.0).judge(timings)["holds"]


def test_memory_and_quality():
    assert [judge_memory(ours, 1000)["holds"] for ours in (500, 501)] == [True, False]
    assert [judge_quality(bf16, 0.645)["holds"] for bf16 in (0.6435, 0.6465, 0.6425, 0.6475)] == [True] * 2 + [
        False
    ] * 2


def test_useful_flops():
    """The tiny BERT: 2 blocks of 4 * 32 * 32 + 2 * 32 * 64 weights; attention multiplies two squares of the length."""
    model = embedders.our_model(backbone.folder(True), "dense", "fp32", torch.device("cpu"))
    lengths = [len(model.tokenizer.encode_batch([text], 256)[0]) for text in ("ba co", "di")]
    by_hand = sum(2 * 2 * (4 * 32 * 32 + 2 * 32 * 64) * n + 2 * 2 * 2 * 32 * n * n for n in lengths)
    assert useful_flops(model, ["ba co", "di"]) == by_hand


def test_the_stages_add_up_to_the_whole():
    ops = {"aten::addmm": 0.4, "aten::mm": 0.1, "moe_retrieval_cpu::block": 0.2, "aten::cumsum": 0.05}
    found = stages.table(1.0, 0.1, ops)
    rows = {row["stage"]: row for row in found["stages"]}
    shares = {name: row["share"] for name, row in rows.items()}
    assert shares == pytest.approx(
        {"matrix products": 0.5, "moe_retrieval_cpu::block": 0.2, stages.REST: 0.15, "tokenise": 0.1, "other ops": 0.05}
    )
    assert rows["matrix products"]["ops"] == ["aten::addmm", "aten::mm"]
    assert found["stages"][0]["stage"] == "matrix products"


def test_a_profile_sees_the_encoder():
    model = embedders.our_model(backbone.folder(True), "dense", "fp32", torch.device("cpu"))
    found = stages.profile(model, ["ba co di", "fe"])
    spent = {row["stage"]: row["ms"] for row in found["stages"]}
    assert spent.get("moe_retrieval_cpu::block", spent.get("matrix products", 0)) > 0
    assert sum(spent.values()) == pytest.approx(found["wall_ms"], abs=0.01 * len(spent))


def test_a_section_leaves_the_others(tmp_path):
    path = tmp_path / "cpu_encoder.json"
    merge({"cases": [1], "memory": {"share": 0.4}}, path)
    merge({"cases": [2]}, path)
    merge({"quality": {"difference": 0.001}}, path)
    assert json.loads(path.read_text()) == {
        "cases": [2], "memory": {"share": 0.4}, "quality": {"difference": 0.001}
    }  # fmt: skip
