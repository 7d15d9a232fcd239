"""Curves over cuts, sweeps, and what training left: the numbers are those of the files."""

import json

from moe_retrieval.reporting.curves import curves
from moe_retrieval.reporting.part import Missing
from moe_retrieval.reporting.sources import Sources
from moe_retrieval.reporting.sweep import sweep
from moe_retrieval.reporting.training import MOST, balance, training
from tests.moe_retrieval.reporting.made import CUTS, comparison, system

SYSTEMS = {"dense": system(0.5, folders=["d"]), "sb-moe": system(0.6, folders=["s"], spread=0.1)}


def plots_of(part):
    (choice, *_) = part.items
    return {plot.name: plot for plot in choice.plots}


def test_a_curve_has_a_point_at_each_cut(tmp_path):
    found = plots_of(curves(Sources(tmp_path, comparison(SYSTEMS))))
    assert list(found) == [f"curve-{name}-test" for name in ("recall", "ndcg", "mrr", "map", "p")]
    dense, moe = found["curve-recall-test"].lines
    assert dense.x == [1, 3, 5, 10, 100]
    assert dense.y == [SYSTEMS["dense"]["measures"]["test"][f"Recall@{cut}"]["mean"] for cut in dense.x]
    assert (dense.spread, moe.spread) == ([0.0] * 5, [0.1] * 5)
    assert set(CUTS) <= set(found["curve-ndcg-test"].ticks)
    assert (dense.color, moe.color) == (0, 1)


def test_a_sweep_is_a_line_by_value_and_what_was_not_swept_a_level(tmp_path):
    points = [{"value": value} | system(ndcg) for value, ndcg in ((8, 0.7), (2, 0.6))]
    swept = {"setting": "num_experts", "systems": {"sb-moe": points}}
    bm25 = system(0.1, seeds=())
    part = sweep(Sources(tmp_path, comparison({"BM25": bm25, **SYSTEMS}, sweep=swept)))
    assert part.title == "By num-experts"
    plot = plots_of(part)["sweep-ndcg-10"]
    level, line = plot.lines
    assert (level.name, level.x, level.y) == ("dense (without num-experts)", [2.0, 8.0], [0.5, 0.5])
    assert (line.name, line.x, line.y) == ("sb-moe", [2.0, 8.0], [0.6, 0.7])
    assert (plot.ticks, plot.is_log) == ({2.0: "2", 8.0: "8"}, False)
    table = part.items[1].columns
    assert (table["num-experts"], table["NDCG@10"]) == (["8", "2"], ["0.700", "0.600"])


def test_a_sweep_of_words_and_one_of_rates(tmp_path):
    def swept(values):
        points = [{"value": value} | system(0.5) for value in values]
        found = comparison(SYSTEMS, sweep={"setting": "lr", "systems": {"sb-moe": points}})
        return plots_of(sweep(Sources(tmp_path, found)))["sweep-ndcg-10"]

    assert swept(["mean", "cls"]).ticks == {0.0: "mean", 1.0: "cls"}
    assert (swept([1e-6, 1e-4]).is_log, swept([1e-6, 1e-4]).ticks[1e-6]) == (True, "1e-06")


def test_without_a_sweep_the_command_is_named(tmp_path):
    told = sweep(Sources(tmp_path, comparison(SYSTEMS)))
    assert isinstance(told, Missing)
    assert "--sweep" in told.command


def with_logs(tmp_path, **logs):
    for name, events in logs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    runs = {"dense": [tmp_path / "d"], "sb-moe": [tmp_path / "s"]}
    return Sources(
        tmp_path, comparison(SYSTEMS), runs={name: there for name, there in runs.items() if there[0].is_dir()}
    )


def test_losses_and_validations_are_those_of_the_log(tmp_path):
    events = [
        {"step": 0, "ndcg_at_10": 0.1},
        {"step": 1, "loss": 2.0, "aux": 0.0, "gradient_norm": 1.0},
        {"step": 2, "loss": float("nan"), "aux": 0.0, "gradient_norm": 1.0},
        {"step": 2, "ndcg_at_10": 0.3},
    ]
    found = plots_of(training(with_logs(tmp_path, s=events)))
    (loss,) = found["training-loss"].lines
    assert (loss.name, loss.color, loss.x, loss.y) == ("sb-moe", 1, [1, 2], [2.0, None])
    (score,) = found["training-validation"].lines
    assert (list(score.x), list(score.y)) == ([0, 2], [0.1, 0.3])


def test_of_many_steps_the_means_stay(tmp_path):
    steps = 5 * MOST
    events = [{"step": step, "loss": float(step % 2)} for step in range(1, steps + 1)]
    (loss,) = plots_of(training(with_logs(tmp_path, d=events)))["training-loss"].lines
    assert len(loss.x) == MOST
    assert loss.x[-1] == steps
    assert abs(sum(loss.y) / MOST - 0.5) < 1e-9


def test_shares_over_training_by_layer(tmp_path):
    looks = [
        {"step": 20, "shares": {"a": [0.5, 0.5], "b": [0.9, 0.1]}},
        {"step": 40, "shares": {"a": [0.25, 0.75], "b": [1.0, 0.0]}},
    ]
    found = plots_of(balance(with_logs(tmp_path, s=looks)))
    assert list(found) == ["balance-sb-moe-effective", "balance-sb-moe-a", "balance-sb-moe-b"]
    assert [(line.name, line.x, line.y) for line in found["balance-sb-moe-a"].lines] == [
        ("expert 0", [20, 40], [0.5, 0.25]),
        ("expert 1", [20, 40], [0.5, 0.75]),
    ]
    first, second = found["balance-sb-moe-effective"].lines
    assert first.y[0] == 2.0
    assert second.y[1] == 1.0


def test_without_logs_nothing_is_drawn(tmp_path):
    empty = Sources(tmp_path, comparison(SYSTEMS))
    assert isinstance(training(empty), Missing)
    assert isinstance(balance(empty), Missing)
    assert isinstance(balance(with_logs(tmp_path, d=[{"step": 1, "loss": 1.0}])), Missing)
