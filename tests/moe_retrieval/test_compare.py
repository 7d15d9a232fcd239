"""python -m moe_retrieval.compare: variants trained alike, measured beside each other."""

import json
import re
import shutil
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import pytrec_eval
import yaml
from matplotlib.figure import Figure
from safetensors.torch import load_file

from kernels import dispatch
from moe_retrieval import checksums, presets
from moe_retrieval.compare import PRESETS, CompareConfig, compare
from moe_retrieval.config import TrainConfig
from moe_retrieval.errors import InputError
from moe_retrieval.evaluation.metrics import evaluate_run, mean_of
from moe_retrieval.evaluation.results import kept_run, write_results
from moe_retrieval.evaluation.runs import read_run
from moe_retrieval.train import main
from moe_retrieval.training import comparison
from moe_retrieval.training.contest import effective
from tests.moe_retrieval.rare_words import SCRATCH, write_collection

SECONDS = SCRATCH | dict(max_steps=2, batch_size=16, eval_every=0, precision="fp32", num_experts=3)


def runs_of(**options):
    return CompareConfig(**options).contest().runs


def test_the_runs_are_alike_but_for_what_is_compared():
    runs = runs_of(variants="dense, dense-wide,random,sb-moe", seeds=2, seed=5, num_experts=3, lr=1e-4)
    assert list(runs) == ["dense", "dense-wide", "random", "sb-moe"]
    alike = [run for of_variant in runs.values() for run in of_variant]
    assert [run.seed for run in alike] == [5, 6] * 4
    assert len({run.output_dir for run in alike}) == 8
    assert {run.num_experts for run in alike if run.variant != "dense"} == {3}
    assert {run.num_experts for run in runs["dense"]} == {None}
    same = {"variant": "dense", "seed": 0, "output_dir": "", "num_experts": None, "control_of": None}
    assert len({repr(replace(run, **same)) for run in alike}) == 1


def test_the_controls_are_of_the_family_that_is_named():
    runs = runs_of(variants="random,moe,sb-moe", control_of="moe", layers="all", combine="normalized")
    assert [(runs[name][0].layers, runs[name][0].combine) for name in runs] == [
        ("all", None),
        ("all", None),
        (None, "normalized"),
    ]
    assert [runs[name][0].control_of for name in runs] == ["moe", None, None]


def test_the_controls_are_of_the_only_variant_with_experts():
    runs = runs_of(variants="dense,dense-wide,random,moe")
    assert [run.family for (run,) in runs.values()] == ["dense", "moe", "moe", "moe"]


def test_a_preset_brings_its_controls():
    runs = runs_of(**PRESETS["ucsd"]({}))
    assert {(name, run.family) for name, (run,) in runs.items()} == {
        ("dense", "dense"),
        ("dense-wide", "moe"),
        ("random", "moe"),
        ("moe", "moe"),
    }


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("variants", ["dense", "dense,sb-moe", "dense,dense-wide,moe", "sb-moe,moe"])
def test_a_preset_goes_with_any_variants(preset, variants):
    assert list(runs_of(**PRESETS[preset]({"variants": variants}))) == variants.split(",")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("variants", ["dense,dense-wide,random", "dense,sb-moe,random", "dense,dense-wide,moe"])
def test_a_preset_makes_of_each_variant_what_it_makes_of_it_in_train(preset, variants):
    for name, (run,) in runs_of(**PRESETS[preset]({"variants": variants})).items():
        given = {"variant": name} | ({"control_of": run.control_of} if run.control_of else {})
        alone = TrainConfig(**presets.PRESETS[preset].flags(given) | given)
        same = {"output_dir": "", "no_eval": True, "control_of": run.control_of}
        assert replace(run, **same) == replace(alone, **same), name


def test_of_two_kinds_of_experts_a_preset_leaves_those_alone_that_are_not_of_the_paper():
    of_paper = runs_of(**PRESETS["sb-moe-paper"]({"variants": "sb-moe,moe"}))
    (ours,), (other,) = of_paper["sb-moe"], of_paper["moe"]
    assert (ours.combine, ours.aux_coef, effective(ours, "num_experts"), effective(ours, "top_k")) == (
        "normalized", 0.0, 6, 1,
    )  # fmt: skip
    assert (effective(other, "num_experts"), effective(other, "top_k"), effective(other, "noise")) == (8, 2, False)
    of_report = runs_of(**PRESETS["ucsd"]({"variants": "sb-moe,moe"}))
    assert [effective(run, "num_experts") for (run,) in of_report.values()] == [6, 8]


def test_of_two_kinds_of_experts_each_has_controls_of_its_own():
    runs = runs_of(variants="dense,dense-wide,random,sb-moe,sb-moe-all,moe", output_dir="out")
    found = {name: (run.variant, run.family, run.output_dir) for name, (run,) in runs.items()}
    assert found == {
        "dense": ("dense", "dense", "out/dense-seed0"),
        "dense-wide of sb-moe": ("dense-wide", "sb-moe", "out/dense-wide-seed0"),  # where it is without moe, too
        "dense-wide of moe": ("dense-wide", "moe", "out/dense-wide-of-moe-seed0"),
        "random of sb-moe": ("random", "sb-moe", "out/random-seed0"),
        "random of moe": ("random", "moe", "out/random-of-moe-seed0"),
        "sb-moe": ("sb-moe", "sb-moe", "out/sb-moe-seed0"),
        "sb-moe-all": ("sb-moe", "sb-moe", "out/sb-moe-all-seed0"),
        "moe": ("moe", "moe", "out/moe-seed0"),
    }
    assert [run.top_k for (run,) in runs.values()] == [None] * 6 + ["all", None]


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
        (dict(variants="dense,sb-moe,sb-moe-all", top_k="all"), "with --top-k all, sb-moe and sb-moe-all are the same"),
        (dict(variants="dense,sb-moe-all", top_k=2), "--top-k is for none of --variants dense,sb-moe-all"),
        (dict(variants="dense,moe", num_experts=1), "moe: --top-k must be at most 1, its number of experts; got 2"),
        (dict(sweep="num-experts"), "--sweep takes a setting and its values, like num-experts=2,4,6,8,12; got 'num"),
        (dict(sweep="num-experts=2,,4"), "--sweep takes a setting and its values"),
        (dict(sweep="experts=2,4"), "--sweep: expected a flag of train that runs may differ in.* got 'experts'"),
        (dict(sweep="seed=1,2"), "--sweep: expected a flag of train that runs may differ in.* got 'seed'"),
        (dict(sweep="num-experts=2,many"), "'many'"),
        (dict(sweep="num-experts=2,02"), "--sweep: each value once"),
        (dict(sweep="warmup=0.1,2"), "--warmup is a share"),
        (dict(sweep="layers=1,all"), "--sweep: --layers is for none of --variants dense,dense-wide,random,sb-moe"),
        (dict(variants="dense,moe", sweep="num-experts=1,2"), "moe, num-experts 1: --top-k must be at most 1"),
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


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A folder with a comparison and its collection, whose documents are of two domains."""
    folder = tmp_path_factory.mktemp("compared")
    write_collection(folder / "collection")
    lines = [json.loads(line) for line in (folder / "collection" / "corpus.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        line["metadata"] = {"domain": "odd|strange" if number % 3 else "thirds"}
    (folder / "collection" / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "train_apart", main)
        compare(swept_config(folder))
    return folder


def swept_config(folder):
    return CompareConfig(
        **SECONDS, dataset=str(folder / "collection"), output_dir=str(folder / "runs"), seeds=2, lr=0.01,
        variants="dense,dense-wide,sb-moe", sweep="num-experts=2,3",
    )  # fmt: skip


def test_from_end_to_end_and_again(compared, monkeypatch):
    """What is there is neither trained nor ranked again, and the pages come out the same."""
    kept = [path for name in ("run.trec", "speed.json", "state.json") for path in (compared / "runs").rglob(name)]
    assert len([path for path in kept if path.name == "run.trec"]) == 20  # of ten models, on both splits
    before = {path: path.stat().st_mtime_ns for path in kept}
    names = "README.md", "comparison.json", "sweep.svg", "sweep.png"
    pages = [(compared / "runs" / name).read_bytes() for name in names]
    # in this process: that of its own is started in the test below
    monkeypatch.setattr(comparison, "train_apart", main)
    config = swept_config(compared)
    written = compare(config)
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert [(compared / "runs" / name).read_bytes() for name in names] == pages
    assert not list((compared / "runs").rglob("*.npy"))

    titles, _, *rows = map(figures, written.splitlines())
    assert titles == [
        "", "NDCG@10", "95% interval", "Recall@100", "MRR@10", "p against dense", "p against dense-wide",
        "NDCG@10 by seed", "parameters", "active",
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["BM25", "dense", "dense-wide", "sb-moe"]
    by_title = [dict(zip(titles, row)) for row in rows]
    for found, variant in zip(by_title[1:], ("dense", "dense-wide", "sb-moe")):
        left = [json.loads((compared / f"runs/{variant}-seed{seed}/metrics.json").read_text()) for seed in (0, 1)]
        assert found["NDCG@10 by seed"] == ", ".join(f"{one['NDCG@10']:.3f}" for one in left)
        assert found["NDCG@10"] == f"{np.mean([one['NDCG@10'] for one in left]):.3f}"
    assert by_title[1]["p against dense"] == by_title[2]["p against dense-wide"] == ""
    page = pages[0].decode()
    assert written == page.split("\n\n")[1]
    assert "--variants=dense,dense-wide,sb-moe" in page
    assert "--sweep=num-experts=2,3" in page
    with pytest.raises(InputError, match=r"dense-seed0 was begun with max_steps 2 \(now 4\): give the same flags"):
        compare(replace(config, max_steps=4))


def judged_and_ranked(folder, run, split):
    """By readers of others: the tsv file, and the file in TREC's format."""
    qrels = {}
    for line in (folder / "collection" / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]:
        query, document, score = line.split("\t")
        qrels.setdefault(query, {})[document] = int(score)
    where = folder / "runs" / run / ("fit" if split == "train" else "")
    with open(where / "run.trec") as file:
        return qrels, pytrec_eval.parse_run(file)


TREC = {
    "NDCG@10": "ndcg_cut_10", "Recall@1": "recall_1", "Recall@5": "recall_5", "Recall@10": "recall_10",
    "Recall@100": "recall_100", "MRR@10": "recip_rank", "P@1": "P_1", "P@5": "P_5", "P@10": "P_10", "MAP@1000": "map",
}  # fmt: skip
WANTED = {"ndcg_cut.10", "recall.1,5,10,100", "recip_rank", "P.1,5,10", "map"}


def values_of(folder, run, split):
    """Measure -> query -> value, by trec_eval from what was written."""
    qrels, ranked = judged_and_ranked(folder, run, split)
    found = pytrec_eval.RelevanceEvaluator(qrels, WANTED).evaluate(ranked)
    assert set(found) == set(qrels)
    values = {name: {query: found[query][trec] for query in qrels} for name, trec in TREC.items()}
    values["MRR@10"] = {query: value if value >= 0.1 else 0.0 for query, value in values["MRR@10"].items()}
    return values


def tables(folder):
    """Heading of README.md -> system -> title -> cell"""
    found = {}
    for section in re.split(r"^#+ ", (folder / "runs" / "README.md").read_text(), flags=re.MULTILINE)[1:]:
        heading, _, rest = section.partition("\n")
        lines = [line for line in rest.splitlines() if line.startswith("|")]
        titles, _, *rows = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines)
        found[heading] = [dict(zip(titles, row)) for row in rows]
    return found


def shown(values):
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


@pytest.mark.parametrize("split, heading", [("test", "All measures"), ("train", "Fit: the train split")])
def test_every_measure_is_what_trec_eval_makes_of_the_rankings(compared, split, heading):
    rows = {row[""]: row for row in tables(compared)[heading]}
    written = json.loads((compared / "runs" / "comparison.json").read_text())
    assert list(rows) == list(written["systems"]) == ["BM25", "dense", "dense-wide", "sb-moe"]
    for variant in ("dense", "dense-wide", "sb-moe"):
        by_seed = [values_of(compared, f"{variant}-seed{seed}", split) for seed in (0, 1)]
        for name in TREC:
            means = [np.mean(list(values[name].values())) for values in by_seed]
            told = written["systems"][variant]["measures"][split][name]
            assert told["by_seed"] == pytest.approx(means, abs=1e-12)
            assert (told["mean"], told["spread"]) == pytest.approx((np.mean(means), np.std(means, ddof=1)), abs=1e-12)
            assert rows[variant][name] == shown(means)
    assert "±" not in rows["BM25"]["NDCG@10"]
    assert written["queries"] == {"test": 20, "train": 50}
    assert written["systems"]["sb-moe"]["folders"] == ["sb-moe-seed0", "sb-moe-seed1"]


def test_a_domain_is_measured_by_its_own_queries(compared):
    rows = tables(compared)["By domain"]
    written = json.loads((compared / "runs" / "comparison.json").read_text())
    domains = {"odd|strange": lambda number: number % 3, "thirds": lambda number: number % 3 == 0}
    for row, (domain, belongs) in zip(rows, domains.items(), strict=True):
        means = []
        for seed in (0, 1):
            values = values_of(compared, f"sb-moe-seed{seed}", "test")["NDCG@10"]
            means.append(np.mean([value for query, value in values.items() if belongs(int(query[1:]))]))
        assert row["sb-moe"] == shown(means)
        assert int(row["queries"]) == written["domains"][domain] == sum(bool(belongs(n)) for n in range(70, 90))
        assert written["systems"]["sb-moe"]["by_domain"][domain]["NDCG@10"]["by_seed"] == pytest.approx(means)


def exact_p(a, b):
    """Over all ways to exchange the two values of queries."""
    differences = [x - y for x, y in zip(a, b) if x != y]
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    assert len(differences) >= 6, "nothing to test"
    return np.mean(np.abs(sums) >= abs(sum(differences)) * (1 - 1e-9))


def test_p_is_against_dense_and_dense_wide_and_in_a_sweep_against_those_with_the_same_value(compared):
    def mean(name):
        each = [list(values_of(compared, f"{name}-seed{seed}", "test")["NDCG@10"].values()) for seed in (0, 1)]
        return np.mean(each, axis=0)

    written = json.loads((compared / "runs" / "comparison.json").read_text())
    told = written["systems"]["sb-moe"]["p_against"]
    dense, wide, experts = (mean(name) for name in ("dense", "dense-wide", "sb-moe"))
    assert told == {
        "dense": pytest.approx(exact_p(experts, dense), abs=0.01),
        "dense-wide": pytest.approx(exact_p(experts, wide), abs=0.01),
    }
    assert written["systems"]["dense"]["p_against"]["dense"] is None
    points = {point["value"]: point for point in written["sweep"]["systems"]["sb-moe"]}
    assert points[3]["p_against"] == told
    few, few_wide = mean("sb-moe-num-experts-2"), mean("dense-wide-num-experts-2")
    assert points[2]["p_against"] == {
        "dense": pytest.approx(exact_p(few, dense), abs=0.01),
        "dense-wide": pytest.approx(exact_p(few, few_wide), abs=0.01),
    }


def test_a_sweep_is_a_table_and_a_curve_of_all_its_points(compared, monkeypatch):
    rows = {(row[""], row["num-experts"]): row for row in tables(compared)["By num-experts"]}
    assert set(rows) == {(name, value) for name in ("dense-wide", "sb-moe") for value in "23"}
    expected = {}
    for name, value, folder in (
        ("dense-wide", 2, "dense-wide-num-experts-2"), ("dense-wide", 3, "dense-wide"),
        ("sb-moe", 2, "sb-moe-num-experts-2"), ("sb-moe", 3, "sb-moe"),
    ):  # fmt: skip
        means = [np.mean(list(values_of(compared, f"{folder}-seed{s}", "test")["NDCG@10"].values())) for s in (0, 1)]
        assert rows[name, str(value)]["NDCG@10"] == shown(means)
        expected.setdefault(name, []).append((value, np.mean(means)))
    assert "](sweep.png)" in (compared / "runs" / "README.md").read_text()
    assert (compared / "runs" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    labels = "".join(ElementTree.parse(compared / "runs" / "sweep.svg").getroot().itertext())
    assert all(word in labels for word in ("sb-moe", "dense-wide", "dense", "num-experts", "NDCG@10"))

    drawn, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *rest, **how: drawn.append(figure) or save(figure, *rest, **how)
    )
    monkeypatch.setattr(comparison, "train_apart", lambda flags: None)
    compare(swept_config(compared))
    (axis,) = drawn[0].axes
    curves = {bars.get_label(): bars.lines[0].get_xydata() for bars in axis.containers}
    assert curves.keys() == expected.keys()
    for name, points in expected.items():
        assert curves[name] == pytest.approx(np.array(points))
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["2", "3"]


def test_what_each_costs_is_what_its_run_and_its_weights_say(compared):
    rows = {row[""]: row for row in tables(compared)["Costs"]}
    written = json.loads((compared / "runs" / "comparison.json").read_text())["systems"]
    assert list(rows) == ["dense", "dense-wide", "sb-moe"]
    for variant in rows:
        weights = load_file(compared / "runs" / f"{variant}-seed0" / "model.safetensors")
        costs = written[variant]["costs"]
        assert costs["parameters"] == sum(weight.numel() for weight in weights.values())
        unused = sum(weight.numel() * 2 // 3 for name, weight in weights.items() if ".experts." in name)
        assert costs["active"] == costs["parameters"] - unused
        assert costs["steps"] == 2
        assert 0 < costs["training_seconds"] < 60
        assert 50e6 < costs["peak_bytes"] < 20e9
        assert rows[variant]["documents/s"] == f"{costs['documents_per_second']:,.0f}"
        assert rows[variant]["query, ms"] == f"{costs['query_ms']:.1f}"
        assert re.fullmatch(r"\d:\d\d", rows[variant]["training time"])
    assert written["sb-moe"]["costs"]["active"] < written["sb-moe"]["costs"]["parameters"]


def test_a_comparison_of_an_older_version_goes_on(compared, tmp_path, monkeypatch):
    """Its folders have neither a fit nor a speed, its checkpoints no costs, its flags not all that there are now."""
    shutil.copytree(compared, tmp_path, dirs_exist_ok=True)
    config = replace(swept_config(tmp_path), dataset=str(compared / "collection"), sweep=None)
    old = tmp_path / "runs" / "dense-seed0"
    shutil.rmtree(old / "fit")
    (old / "speed.json").unlink()
    for path in tmp_path.glob("runs/dense-seed*/checkpoints/step-*/state.json"):
        state = checksums.read_sealed(path)
        del state["progress"]["seconds"], state["progress"]["peak_memory"], state["config"]["dropout"]
        checksums.write_sealed(path, state)
    flags = yaml.safe_load((old / "config.yaml").read_text())
    del flags["dropout"]
    (old / "config.yaml").write_text(yaml.safe_dump(flags))
    ranked = (old / "run.trec").stat().st_mtime_ns
    monkeypatch.setattr(comparison, "train_apart", main)
    written = compare(config)
    assert (old / "run.trec").stat().st_mtime_ns == ranked
    assert written in (compared / "runs" / "README.md").read_text()
    costs = json.loads((tmp_path / "runs" / "comparison.json").read_text())["systems"]["dense"]["costs"]
    assert "training_seconds" not in costs
    assert costs["documents_per_second"] > 0
    with pytest.raises(InputError, match=r"dense-seed0 was begun with dropout 0.0 \(now 0.1\)"):
        compare(replace(config, dropout=0.1))


def test_what_a_run_says_is_heard(tmp_path, monkeypatch, capfd):
    (tmp_path / "python").write_text("#!/bin/sh\necho heard\necho training: 1 of 2 steps >&2\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    comparison.train_apart([])
    assert capfd.readouterr() == ("heard\n", "training: 1 of 2 steps\n")


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
