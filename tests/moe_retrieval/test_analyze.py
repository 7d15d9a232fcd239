"""python -m moe_retrieval.analyze, by its config and as a command: what it writes of each kind of model."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from moe_retrieval.analysis.observation import Observer
from moe_retrieval.analysis.page import page, summary
from moe_retrieval.analyze import AnalyzeConfig, analyze
from moe_retrieval.errors import InputError
from moe_retrieval.evaluate import EvaluateConfig, evaluate
from moe_retrieval.evaluation import ranking
from moe_retrieval.models.export import save
from moe_retrieval.retrieval.model import load
from tests.moe_retrieval.gardens import model_with_experts, write_gardens

VARIANTS = ("sb-moe", "moe", "dense", "random-sb", "dense-wide-sb")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A collection, models, and what an evaluation of the dense one left beside it."""
    folder = tmp_path_factory.mktemp("home")
    write_gardens(folder / "gardens")
    for variant in VARIANTS:
        model = model_with_experts(variant)
        save(folder / variant, model.retriever, model.tokenizer, "")
    flags = dict(precision="fp32", no_bm25=True, output_dir=str(folder / "dense"))
    evaluate(EvaluateConfig(str(folder / "dense"), str(folder / "gardens"), **flags))
    return folder


def config(home, variant, **options):
    settings = dict(dataset=str(home / "gardens"), output_dir=str(home / f"of-{variant}"), precision="fp32")
    return AnalyzeConfig(str(home / variant), **(settings | options))


def written(home, variant):
    """analysis.json, which must be JSON for any reader."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((home / f"of-{variant}" / "analysis.json").read_text(), parse_constant=refuse)


def test_a_layer_after_the_pooling(home, capsys):
    found = analyze(config(home, "sb-moe", against=str(home / "dense")))
    kept = written(home, "sb-moe")
    assert kept == json.loads(json.dumps(found))
    layer = {"layer": "block", "routes": "texts", "experts": 3, "top_k": 1, "chosen_by": "router", "noise": True}
    assert kept["layers"] == [layer]
    counts = {(row["side"], row["domain"]): row["count"] for row in kept["load"]}
    assert counts == {
        ("query", None): 16, ("query", "pond"): 8, ("query", "(none)"): 8,
        ("document", None): 48, ("document", "pond"): 24, ("document", "wood"): 16, ("document", "(none)"): 8,
    }  # fmt: skip
    assert [row["side"] for row in kept["terms"]] == ["query"] * 3 + ["document"] * 3
    assert [row["layer"] for row in kept["confidence"]] == ["block"]
    assert {row["expert"] for row in kept["removal"]["experts"]} == {0, 1, 2}
    assert kept["removal"]["note"] is None
    assert kept["balance"]["note"].startswith("nothing was kept of the training")
    assert np.shape(kept["redundancy"][0]["outputs"]) == (3, 3)

    own, other = (np.array(kept["queries"][name]) for name in ("ndcg_at_10", "against"))
    assert kept["against"]["gained"] == np.sum(own > other) == len(kept["gains"])
    assert kept["against"]["lost"] == np.sum(own < other) == len(kept["losses"])
    assert kept["against"]["difference"] == pytest.approx(kept["ndcg_at_10"] - kept["against"]["ndcg_at_10"])
    assert other.mean() == pytest.approx(json.loads((home / "dense" / "metrics.json").read_text())["NDCG@10"])
    for row in kept["domains"]:
        asked = np.array(kept["queries"]["domain"]) == row["domain"]
        assert row["queries"] == asked.sum()
        assert row["ndcg_at_10"] == (pytest.approx(own[asked].mean()) if asked.any() else None)

    told = (home / "of-sb-moe" / "README.md").read_text()
    for head in ("Load", "Balance over training", "Is a sure gate right?", "One expert removed", "Domains", "Gains"):
        assert f"\n## {head}\n" in told
    shown = capsys.readouterr().out
    assert shown.startswith("gardens, test split, full setting: 16 queries, 48 documents (content hash ")
    assert re.search(r"block: effective experts [0-9.]+ of 3 for query texts, [0-9.]+ of 3 for document texts", shown)


def test_the_score_is_that_of_an_evaluation(home):
    found = analyze(config(home, "moe"))
    measured = evaluate(EvaluateConfig(str(home / "moe"), str(home / "gardens"), precision="fp32", no_bm25=True))
    assert found["ndcg_at_10"] == pytest.approx(measured["NDCG@10"])
    in_pool = analyze(config(home, "moe", setting="gold-pool"))
    assert in_pool["run"]["documents"] == 16
    assert in_pool["ndcg_at_10"] > found["ndcg_at_10"]


def test_layers_in_the_encoder_are_of_tokens_and_their_removal_is_asked_for(home):
    found = analyze(config(home, "moe"))
    assert [(row["layer"], row["routes"]) for row in found["layers"]] == [("encoder.blocks.1.ffn", "tokens")]
    assert found["removal"]["experts"] == []
    note = r"0 of 4 experts were removed: --removals 4 is for all, for each of which everything is encoded again, in a"
    assert re.match(note, found["removal"]["note"])
    some = analyze(config(home, "moe", removals=3))
    assert [row["share"] for row in some["removal"]["experts"]] == sorted(
        next(row["share"] for row in some["load"] if row["side"] == "document" and row["domain"] is None), reverse=True
    )[:3]
    assert some["removal"]["note"].startswith("3 of 4 experts were removed")
    assert analyze(config(home, "moe", removals=99))["removal"]["note"] is None


def test_where_nothing_is_lost_without_an_expert_that_is_what_is_said(home):
    found = analyze(config(home, "sb-moe"))
    for row in found["removal"]["experts"]:
        row["difference"] = row["expert"] / 100
    assert "\nnothing is lost without any one of 3 experts" in summary("x", found)
    row |= {"difference": -0.02, "p": None, "queries_changed": 3}
    most = f"\nmost is lost without expert {row['expert']} of block: NDCG@10 -0.0200"
    assert f"{most} (3 queries change)" in summary("x", found)
    row["p"] = 0.012
    assert f"{most} (p 0.0120)" in summary("x", found)


def test_no_removals(home):
    found = analyze(config(home, "sb-moe", removals=0))
    assert found["removal"] == {"note": "0 of 3 experts were removed: --removals 3 is for all", "experts": []}


@pytest.mark.parametrize("variant", ["dense", "dense-wide-sb"])
def test_a_model_without_experts_says_so(home, variant, capsys):
    found = analyze(config(home, variant, against=str(home / "dense" / "run.trec")))
    name = variant.removesuffix("-sb")
    assert f"a {name} model has no experts: no load, terms or removals to tell of" in capsys.readouterr().out
    assert found["layers"] == found["load"] == found["terms"] == found["confidence"] == []
    told = (home / f"of-{variant}" / "README.md").read_text()
    assert "## Load" not in told
    assert "## Domains" in told
    if variant == "dense":
        assert (found["against"]["gained"], found["against"]["lost"], found["against"]["p"]) == (0, 0, None)


def test_a_routing_by_hash_has_a_load_and_no_confidence(home):
    found = analyze(config(home, "random-sb"))
    assert found["layers"][0]["chosen_by"] == "hash"
    assert found["load"]
    assert found["confidence"] == found["removal"]["experts"] == []
    assert found["removal"]["note"] == "there is no router that could choose another expert"
    assert "## Is a sure gate right?" not in (home / "of-random-sb" / "README.md").read_text()


def test_warnings_are_those_of_training(home, tmp_path):
    """A router that always says the same, experts that are all alike, and a loss that jumped."""
    model = model_with_experts("moe")
    for layer in model.retriever.expert_layers().values():
        layer.router.weight.data.zero_()
        for stack in layer.experts.parameters():
            stack.data[:] = stack.data[:1].clone()
    save(tmp_path / "run", model.retriever, model.tokenizer, "")
    events = [{"step": step, "loss": loss, "aux": 0.0, "gradient_norm": 1.0} for step, loss in ((1, 1.0), (2, 9.0))]
    (tmp_path / "run" / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    found = analyze(
        AnalyzeConfig(str(tmp_path / "run"), str(tmp_path / "out"), str(home / "gardens"), precision="fp32")
    )
    kinds = [(finding["kind"], finding["where"]) for finding in found["findings"]]
    assert kinds == [
        ("collapse", "encoder.blocks.1.ffn"), ("redundancy", "encoder.blocks.1.ffn"), ("instability", 2),
    ]  # fmt: skip
    assert found["findings"][0]["text"].startswith("collapse: 2 of 4 experts of encoder.blocks.1.ffn take 100%")
    assert "\n- redundancy: the experts of " in (tmp_path / "out" / "README.md").read_text()


def test_what_was_ranked_before_is_not_ranked_again(home, monkeypatch):
    monkeypatch.setattr(ranking, "encode_texts", None)
    monkeypatch.setattr("moe_retrieval.analysis.study.model_run", None)
    found = analyze(config(home, "sb-moe", against=str(home / "dense"), removals=0))
    assert found["run"]["against"] == str(home / "dense")


def test_a_model_that_was_not_ranked_is(home, tmp_path):
    shutil.copytree(home / "dense", tmp_path / "dense")
    (tmp_path / "dense" / "run.trec").unlink()
    kept, ranked = (
        analyze(config(home, "sb-moe", against=str(folder / "dense"), removals=0)) for folder in (home, tmp_path)
    )
    assert kept["queries"] == ranked["queries"]
    assert not (tmp_path / "dense" / "run.trec").exists()  # another's folder is only read


def test_the_card_of_a_model_is_not_lost(home):
    """A run that goes on elsewhere takes its card along."""
    before = {path.name: path.read_bytes() for path in (home / "moe").iterdir()}
    with pytest.raises(InputError, match=r"moe/README\.md is of something else, and would be lost: give another --ou"):
        analyze(config(home, "moe", output_dir=str(home / "moe")))
    assert before == {path.name: path.read_bytes() for path in (home / "moe").iterdir()}


def test_what_was_not_read_of_texts_is_said(home, caplog):
    """In the words of an evaluation."""
    model = load(str(home / "sb-moe"), "fp32").with_usage(doc_length=4)
    Observer(model, 1).observe(["moss and fern and reed", ""], "document", torch.zeros(2, dtype=torch.int64))
    assert "1 of 2 documents are longer than 4 tokens; the rest of them was not read" in caplog.text


def test_texts_do_not_break_the_page(home):
    found = analyze(config(home, "sb-moe", against=str(home / "dense"), removals=0))
    signs = {"a|b": r"a\|b", "<b>": r"\<b>", "`": r"\`", "*": r"\*", "__init__": r"\_\_init\_\_", "as_is": "as_is"}
    found["terms"][0]["terms"] = [{"term": sign, "score": 2.0, "count": 1.0, "share": 1.0} for sign in signs]
    found["losses"][0]["text"] = "<!-- of *args"
    shown = page("x", found)
    for shown_as in signs.values():
        assert f" {shown_as} (2.0)" in shown
    assert r"- **\<!-- of \*args** " in shown


def test_a_document_is_told_once_a_query(home):
    found = analyze(config(home, "sb-moe", against=str(home / "dense"), removals=0))
    (gain, *_), text = found["gains"], "fern and reed"
    gain["relevant"] = gain["top"] = {"id": "d1", "text": text}
    gain["against_top"] = {"id": "d2", "text": "moss"}
    told = page("x", found | {"gains": [gain], "losses": []})
    assert told.count(text) == 1
    assert "\n  - first here: the same\n  - first there: `d2` moss\n" in told


def test_shares_of_training_are_with_its_noise(home):
    """Where there is some: the same router may spread its texts in training and send them all to one expert later."""
    found = analyze(config(home, "sb-moe", removals=0))
    found["balance"] = {"note": None, "shares": [{"step": 20, "layer": "block", "share": [0.4, 0.3, 0.3],
                                                  "effective_experts": 2.9}]}  # fmt: skip
    said = "In training noise is added to the router's scores of `block`; without it, as above, shares differ."
    assert said in page("x", found)
    found["layers"][0]["noise"] = False
    assert said not in page("x", found)


def test_bad_input(home, tmp_path, monkeypatch):
    other = write_gardens(tmp_path / "other", documents=54)
    evaluate(EvaluateConfig(str(home / "dense"), str(other), output_dir=str(tmp_path / "run"), no_bm25=True))
    with pytest.raises(InputError, match="is of dataset_fingerprint"):
        analyze(config(home, "moe", against=str(tmp_path / "run" / "run.trec")))
    with pytest.raises(InputError, match="gardens has no split 'dev'; it has test"):
        analyze(config(home, "moe", split="dev"))
    with pytest.raises(InputError, match="--removals must be at least 0, got -1"):
        config(home, "moe", removals=-1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="without torchrun"):
        analyze(config(home, "moe"))


def test_the_command(home, tmp_path):
    flags = ["--model", home / "sb-moe", "--dataset", home / "gardens", "--output-dir", tmp_path / "out"]
    command = [sys.executable, "-m", "moe_retrieval.analyze", *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"more in {tmp_path / 'out' / 'README.md'}\n")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"analysis.json", "README.md"}
