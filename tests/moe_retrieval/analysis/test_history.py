"""What a log tells of the experts in training."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from moe_retrieval.analysis.history import describe_balance, find_instability, read_log
from moe_retrieval.training.loop import train
from tests.moe_retrieval.corpora import write_lines
from tests.moe_retrieval.rare_words import FAST, write_collection


def step(number, loss, norm=1.0, aux=0.01):
    return {"step": number, "loss": loss, "aux": aux, "gradient_norm": norm, "time": 0.0}


def test_what_training_writes_is_what_is_read(tmp_path):
    run = tmp_path / "run"
    config = replace(
        FAST, dataset=str(write_collection(tmp_path / "words")), output_dir=str(run), num_experts=3, max_steps=41,
        eval_every=0, save_every=0,
    )  # fmt: skip
    train(config)
    found = describe_balance(read_log(run))
    assert found["note"] is None
    assert [(row["step"], row["layer"]) for row in found["shares"]] == [(20, "block"), (40, "block")]
    for row in found["shares"]:
        assert sum(row["share"]) == pytest.approx(1, abs=0.002)
        assert 1 <= row["effective_experts"] <= 3.001
    losses = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    expected = [{"step": event["step"], "aux": event["aux"]} for event in losses if "aux" in event]
    assert found["router_loss"] == expected
    assert len(expected) == 41


def test_effective_experts_of_a_look():
    events = [{"step": 20, "shares": {"a": [0.5, 0.5, 0.0], "b": [1.0, 0.0]}, "time": 1.0}]
    rows = describe_balance(events)["shares"]
    assert [(row["layer"], round(row["effective_experts"], 6)) for row in rows] == [("a", 2.0), ("b", 1.0)]


def test_it_says_why_there_is_nothing(tmp_path):
    assert "there is no log.jsonl beside the model" in describe_balance(read_log(tmp_path))["note"]
    few = describe_balance([step(1, 0.5), step(2, 0.4, aux=math.nan)])
    assert few["note"] == "log.jsonl has losses and no shares: a run of fewer than 20 steps, or of an earlier version"
    assert few["router_loss"] == [{"step": 1, "aux": 0.01}]


def test_damaged_lines_are_left_out(tmp_path):
    lines = [b'{"step": 1, "loss": 2.0, "aux": 0.5}', b"\xff", b"[" * 100_000, b'{"step": 2, "lo']
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines))
    assert [event["step"] for event in read_log(tmp_path)] == [1]
    odd = [{"step": 1, "loss": "x", "gradient_norm": 1.0, "aux": None, "shares": {"a": 3, "b": ["x"]}}]
    assert found(tmp_path, odd) == []
    assert (describe_balance(odd)["shares"], describe_balance(odd)["router_loss"]) == ([], [])


def found(folder, events):
    write_lines(folder / "log.jsonl", events)
    return [(finding.key, finding.text) for finding in find_instability(folder, read_log(Path(folder)))]


def test_where_the_loss_jumped(tmp_path):
    calm = [step(number, 1 + 0.1 * (number % 3)) for number in range(1, 20)]
    assert found(tmp_path, [*calm, {"step": 19, "ndcg_at_10": 0.5}]) == []
    jumps = found(tmp_path, [*calm, step(20, 5.0), step(21, float("nan")), step(22, 1.0, float("inf")), step(23, 1.0)])
    assert [key for key, _ in jumps] == [("instability", 20), ("instability", 21), ("instability", 22)]
    assert jumps[0][1].startswith("instability: step 20 has loss 5, usually it is 1.")


def test_a_run_that_broke_off_is_told_to_its_end(tmp_path):
    events = [step(number, float("nan")) for number in range(1, 26)]
    texts = [text for _, text in found(tmp_path, events)]
    assert len(texts) == 20
    assert texts[-1].startswith("instability: 20 steps in a row without a finite gradient")


def test_fp16_looks_for_its_scale_which_is_no_instability(tmp_path):
    (tmp_path / "config.yaml").write_text("precision: fp16\n")
    assert found(tmp_path, [step(1, 1.0, float("inf")), step(2, 1.0)]) == []
    (tmp_path / "config.yaml").write_text("precision: fp32\n")
    assert len(found(tmp_path, [step(1, 1.0, float("inf")), step(2, 1.0)])) == 1
