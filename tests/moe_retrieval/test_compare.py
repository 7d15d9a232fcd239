"""python -m moe_retrieval.compare: variants trained alike, measured beside each other."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import yaml

from kernels import dispatch
from moe_retrieval.compare import PRESETS, CompareConfig, compare
from moe_retrieval.errors import InputError
from moe_retrieval.evaluation.metrics import evaluate_run, mean_of
from moe_retrieval.evaluation.results import kept_run, write_results
from moe_retrieval.evaluation.runs import read_run
from moe_retrieval.train import main
from moe_retrieval.training import comparison
from tests.moe_retrieval.rare_words import SCRATCH, write_collection

SECONDS = SCRATCH | dict(max_steps=2, batch_size=16, eval_every=0, precision="fp32", num_experts=3)


def test_the_runs_are_alike_but_for_what_is_compared():
    config = CompareConfig(variants="dense, dense-wide,random,sb-moe", seeds=2, seed=5, num_experts=3, lr=1e-4)
    runs = config.runs()
    assert list(runs) == ["dense", "dense-wide", "random", "sb-moe"]
    alike = [run for of_variant in runs.values() for run in of_variant]
    assert [run.seed for run in alike] == [5, 6] * 4
    assert len({run.output_dir for run in alike}) == 8
    assert {run.num_experts for run in alike if run.variant != "dense"} == {3}
    assert {run.num_experts for run in runs["dense"]} == {None}
    same = {"variant": "dense", "seed": 0, "output_dir": "", "num_experts": None, "control_of": None}
    assert len({repr(replace(run, **same)) for run in alike}) == 1


def test_the_controls_are_of_the_family_that_is_named():
    runs = CompareConfig(variants="random,moe,sb-moe", control_of="moe", layers="all", combine="normalized").runs()
    assert [(runs[name][0].layers, runs[name][0].combine) for name in runs] == [
        ("all", None),
        ("all", None),
        (None, "normalized"),
    ]
    assert [runs[name][0].control_of for name in runs] == ["moe", None, None]


def test_the_controls_are_of_the_only_variant_with_experts():
    runs = CompareConfig(variants="dense,dense-wide,random,moe").runs()
    assert [run.family for (run,) in runs.values()] == ["dense", "moe", "moe", "moe"]


def test_a_preset_brings_its_controls():
    runs = CompareConfig(**PRESETS["ucsd"]({})).runs()
    assert {(name, run.family) for name, (run,) in runs.items()} == {
        ("dense", "dense"),
        ("dense-wide", "moe"),
        ("random", "moe"),
        ("moe", "moe"),
    }


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("variants", ["dense", "dense,sb-moe", "dense,dense-wide,moe", "sb-moe,moe"])
def test_a_preset_goes_with_any_variants(preset, variants):
    runs = CompareConfig(**PRESETS[preset]({"variants": variants})).runs()
    assert list(runs) == variants.split(",")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (dict(variants="dense,sparse"), "--variants: expected some of dense, sb-moe, moe.* got 'sparse'"),
        (dict(variants="dense,dense"), "--variants: each variant once"),
        (dict(variant="moe"), "--variant is for train"),
        (dict(dataset="docs,scifact"), "--dataset docs,scifact: a comparison is on one data set"),
        (dict(seeds=0), "--seeds must be at least 1, got 0"),
        (dict(no_eval=True), "--no-eval is for train"),
        (dict(warmup=2.0), "--warmup is a share"),
        (dict(resume="runs/x"), "--resume must be auto or never"),
        (dict(variants="random,sb-moe,moe"), "--control-of sb-moe or moe: of which are the controls"),
        (dict(variants="dense", num_experts=3), "--num-experts is for none of --variants dense"),
        (dict(variants="dense,moe", control_of="moe"), "--control-of is for none of --variants dense,moe"),
        (dict(variants="dense,sb-moe", layers="all"), "--layers is for none of --variants dense,sb-moe"),
    ],
)
def test_what_makes_no_sense_is_told_before_anything_is_trained(tmp_path, changed, told):
    config = CompareConfig(output_dir=str(tmp_path / "runs"), **changed)
    with pytest.raises(InputError, match=told):
        compare(config)
    assert not (tmp_path / "runs").exists()


def figures(row):
    return [cell.strip() for cell in row.split("|")[1:-1]]


def test_from_end_to_end_and_again(tmp_path, monkeypatch):
    folder = write_collection(tmp_path / "a collection")
    config = CompareConfig(
        **SECONDS, dataset=str(folder), output_dir=str(tmp_path / "runs"), variants="dense,sb-moe", seeds=2
    )
    # in this process: that of its own is started in the test below
    monkeypatch.setattr(comparison, "train_apart", main)
    written = compare(config)
    titles, _, *rows = map(figures, written.splitlines())
    assert [row[0] for row in rows] == ["BM25", "dense", "sb-moe"]
    by_title = [dict(zip(titles, row)) for row in rows]
    for found, variant in zip(by_title[1:], ("dense", "sb-moe")):
        left = [json.loads((tmp_path / f"runs/{variant}-seed{seed}/metrics.json").read_text()) for seed in (0, 1)]
        assert found["NDCG@10 by seed"] == ", ".join(f"{one['NDCG@10']:.3f}" for one in left)
        assert found["NDCG@10"] == f"{np.mean([one['NDCG@10'] for one in left]):.3f}"
    assert float(by_title[2]["parameters"][:-1]) >= float(by_title[2]["active"][:-1])
    assert by_title[1]["p against dense"] == ""
    page = (tmp_path / "runs" / "README.md").read_text()
    assert written in page
    assert re.search(r"--variants=dense,sb-moe", page)

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("run.trec")}
    assert len(before) == 4
    assert compare(config) == written
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is ranked twice"
    with pytest.raises(InputError, match=r"dense-seed0 was begun with max_steps 2 \(now 4\): give the same flags"):
        compare(replace(config, max_steps=4))


def test_a_collection_without_a_split_to_measure_on_is_refused_first(tmp_path):
    folder = write_collection(tmp_path / "a collection")
    for split in ("test", "dev"):
        (folder / "qrels" / f"{split}.tsv").unlink()
    with pytest.raises(InputError, match="has neither a test split nor a dev split"):
        compare(CompareConfig(dataset=str(folder), output_dir=str(tmp_path / "runs")))
    assert not (tmp_path / "runs").exists()


def test_a_run_is_a_process_whose_failure_ends_the_comparison(tmp_path, capfd):
    folder = write_collection(tmp_path / "a collection")
    config = CompareConfig(dataset=str(folder), output_dir=str(tmp_path / "runs"), variants="dense", model="nowhere")
    with pytest.raises(SystemExit) as end:
        compare(config)
    assert end.value.code == 2
    assert re.search(r"error: .*'?nowhere'? ", capfd.readouterr().err)


@pytest.mark.slow
def test_runs_in_processes_of_their_own(tmp_path, capfd):
    folder = write_collection(tmp_path / "a collection")
    flags = SECONDS | dict(top_k="all", noise=False)
    config = CompareConfig(**flags, dataset=str(folder), output_dir=str(tmp_path / "runs"), variants="dense,sb-moe")
    written = compare(config)
    told = capfd.readouterr().out
    assert told.count("the best model is that of step") == 2
    assert written in told
    settings = yaml.safe_load((tmp_path / "runs" / "sb-moe-seed0" / "config.yaml").read_text())
    assert (settings["top_k"], settings["noise"], settings["num_experts"]) == ("all", False, 3)


def test_precision_is_settled_once_for_all_runs(tmp_path, monkeypatch):
    folder = write_collection(tmp_path / "a collection")
    flags = SECONDS | dict(precision="auto", dataset=str(folder), output_dir=str(tmp_path / "runs"), max_steps=1)
    trained = []
    monkeypatch.setattr(comparison, "train_apart", lambda flags: trained.append(flags) or main(flags))
    for prefers, variants in ((False, "dense"), (True, "dense,random")):  # as if it went on on another machine
        monkeypatch.setattr(dispatch.get("eager"), "prefers_bf16", lambda device, prefers=prefers: prefers)
        compare(CompareConfig(**{**flags, "num_experts": None}, variants=variants))
    assert ["--precision=fp32" in flags for flags in trained] == [True] * 3
    assert "trained in fp32" in (tmp_path / "runs" / "README.md").read_text()


def test_other_data_are_refused(tmp_path, monkeypatch):
    folder = write_collection(tmp_path / "a collection")
    config = CompareConfig(**SECONDS, dataset=str(folder), output_dir=str(tmp_path / "runs"), variants="sb-moe")
    monkeypatch.setattr(comparison, "train_apart", main)
    compare(config)
    write_collection(folder, documents=121)
    with pytest.raises(InputError, match="was begun on other data"):
        compare(config)


def test_torchrun_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="without torchrun"):
        compare(CompareConfig(output_dir=str(tmp_path)))


def test_the_mean_of_runs_is_of_each_query():
    qrels = {"q1": {"a": 1}, "q2": {"b": 1}}
    good = evaluate_run(qrels, {"q1": {"a": 2.0, "c": 1.0}, "q2": {"b": 2.0}})
    worse = evaluate_run(qrels, {"q1": {"a": 1.0, "c": 2.0}, "q2": {"b": 2.0}})
    both = mean_of([good, worse])
    assert both.per_query["MRR@10"].tolist() == [0.75, 1.0]
    assert both.means["MRR@10"] == 0.875


def test_what_an_earlier_call_left_counts_only_if_it_is_whole_and_of_the_same(tmp_path):
    run, origin = {"q1": {"a": 2.0, "c": 1.0}}, {"model": "0123", "split": "test"}
    assert kept_run(tmp_path, origin) is None
    write_results(tmp_path, run, evaluate_run({"q1": {"a": 1}}, run), origin)
    assert kept_run(tmp_path, origin) == run == read_run(tmp_path / "run.trec")
    assert kept_run(tmp_path, origin | {"model": "4567"}) is None
    (tmp_path / "run.trec").write_text("q1 Q0 a 1 3 moe_retrieval\n")
    assert kept_run(tmp_path, origin) is None
    (tmp_path / "metrics.json").write_text("[]")
    assert kept_run(tmp_path, origin) is None
