"""Whole runs, of a model of a few thousand parameters: what they leave, and that nothing stops them for good."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import kernels
import moe_retrieval
from moe_retrieval import data
from moe_retrieval.checksums import write_sealed
from moe_retrieval.cli import to_arguments
from moe_retrieval.config import TrainConfig
from moe_retrieval.errors import InputError
from moe_retrieval.evaluate import EvaluateConfig, evaluate
from moe_retrieval.evaluation.runs import read_run
from moe_retrieval.locks import locked
from moe_retrieval.progress import Meter
from moe_retrieval.retrieval.index import build_index
from moe_retrieval.train import train
from moe_retrieval.training import checkpoint, loop
from moe_retrieval.training.history import History
from moe_retrieval.training.loop import count_steps, is_due
from moe_retrieval.training.losses import Objective
from moe_retrieval.training.validation import Validator
from tests.moe_retrieval.berts import make_bert
from tests.moe_retrieval.hub import write_repository
from tests.moe_retrieval.rare_words import FAST, write_collection
from tests.moe_retrieval.steps import finish, start
from tests.moe_retrieval.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_collection(tmp_path_factory.mktemp("collection"))


@pytest.fixture
def fast(folder, tmp_path):
    return replace(FAST, dataset=str(folder), output_dir=str(tmp_path / "run"))


def log(config):
    with open(f"{config.output_dir}/log.jsonl") as file:
        return [json.loads(line) for line in file]


def test_a_run_leaves_a_model_that_is_better_than_its_start(fast, capsys):
    config = replace(fast, max_steps=60, eval_every=20, lr=1e-2, no_eval=False)
    metrics = moe_retrieval.train(config)
    scores = {event["step"]: event["ndcg_at_10"] for event in log(config) if "ndcg_at_10" in event}
    assert max(scores, key=scores.get) != 0
    written = json.loads(Path(config.output_dir, "metrics.json").read_text())
    assert {name: written[name] for name in metrics} == metrics
    assert written["run"]["training"]["step"] == max(scores, key=scores.get)
    model = moe_retrieval.load(config.output_dir, "fp32", "cpu")
    assert model.settings.variant == "sb-moe"
    assert model.encode(["abcd"]).shape == (1, 24)
    shown = capsys.readouterr().out
    for words in (
        "15 negatives a query, 0 of them",
        "balance loss x 0.01",
        "| BM25 ",
        "| trained (sb-moe) ",
        "search:  ",
    ):
        assert words in shown
    assert "| trained (sb-moe) " in Path(config.output_dir, "README.md").read_text()
    command = shlex.split(shown.partition("search:  python")[2].splitlines()[0])
    found = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    assert "d" in found.stdout.split()[2][:1]
    asked = shlex.split(shown.partition("search:  ")[2].splitlines()[0])[-1]
    lines = Path(config.dataset, "queries.jsonl").read_text().splitlines()
    assert asked in [json.loads(line)["text"] for line in lines]


OPTIONS = [
    dict(variant="moe", layers="all", negatives="bm25", num_negatives=2, chunk_size=5),
    dict(variant="random", control_of="moe", loss="triplet", grad_accum=2),
    dict(variant="dense-wide", loss="contrastive", negatives="bm25", schedule="cosine", pooling="mean-max"),
    dict(variant="dense", precision="bf16", dropout=0.1, pooling="cls", normalize=False, query_prompt="query: "),
    dict(variant="sb-moe", top_k="all", combine="normalized", precision="fp16", epochs=2, max_steps=None),
    dict(variant="moe", router="sigmoid", aux_coef=0.0, noise=True, activation="swiglu"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options["variant"])
def test_options_run_through(options, fast):
    config = replace(fast, **options)
    train(config)
    losses = [event["loss"] for event in log(config) if "loss" in event]
    assert len(losses) == (8 if config.epochs else 12)
    assert np.isfinite(losses).all()
    model = moe_retrieval.load(config.output_dir, "fp32", "cpu")
    assert model.settings.variant == options["variant"]
    assert model.usage.query_prompt == options.get("query_prompt", "")


def test_a_run_says_which_revision_of_the_hub_it_began_as(fast, tmp_path, monkeypatch, capsys):
    folder = write_repository(tmp_path / "hub", monkeypatch)
    make_bert(
        vocab_size=400, hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=40
    ).save_pretrained(folder)
    tiny_tokenizer().save(folder)
    write_repository(tmp_path / "hub", monkeypatch, "b" * 40)  # what a newer one holds is no model
    train(replace(fast, model=f"some/model@{folder.name}", no_eval=False, max_steps=1))
    assert f"sb-moe from some/model@{folder.name} (revision {folder.name}): " in capsys.readouterr().out
    assert f"| backbone revision | {folder.name} |" in Path(fast.output_dir, "README.md").read_text()
    written = json.loads(Path(fast.output_dir, "metrics.json").read_text())
    assert written["run"]["training"]["backbone revision"] == folder.name


def test_negatives_are_mined_by_the_backbone(fast, tmp_path):
    make_bert(
        vocab_size=400, hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=40
    ).save_pretrained(tmp_path / "bert")
    tiny_tokenizer().save(tmp_path / "bert")
    config = replace(fast, model=str(tmp_path / "bert"), negatives="mined", num_negatives=2, no_eval=False)
    metrics = train(config)
    assert 0 < metrics["NDCG@10"] <= 1
    assert "| untouched backbone |" in Path(config.output_dir, "README.md").read_text()


def test_the_last_step_is_a_function_of_the_seed(fast):
    def final(seed, name):
        config = replace(fast, seed=seed, output_dir=f"{fast.output_dir}-{name}", dropout=0.2)
        train(config)
        return (newest_of(config) / "model.safetensors").read_bytes()

    assert final(1, "a") == final(1, "b")
    assert final(2, "c") != final(1, "a")


def config_folder(config):
    return Path(config.output_dir) / "checkpoints"


def newest_of(config):
    """Its newest checkpoint, if it has one."""
    return next(reversed(checkpoint.find_all(config_folder(config))), None)


def test_patience_stops_and_the_best_stays(fast):
    config = replace(fast, max_steps=100, eval_every=2, patience=2, lr=1.0, clip=0.0)
    train(config)
    scores = {event["step"]: event["ndcg_at_10"] for event in log(config) if "ndcg_at_10" in event}
    best = max(scores, key=scores.get)
    assert max(scores) == best + 4 < 100
    state = checkpoint.read_state(newest_of(config))
    assert state["progress"]["best_step"] == best
    assert state["progress"]["stopped_early"]


def test_resume_wants_the_same_run(fast):
    train(fast)
    with pytest.raises(InputError, match=r"is from a run with lr 0.003 \(now 0.1\): give the same flags"):
        train(replace(fast, lr=0.1))
    train(replace(fast, save_every=3, eval_every=5, patience=9, no_eval=True))
    with pytest.raises(InputError, match=r"--resume .*/none: expected auto, never, or a directory like"):
        train(replace(fast, resume=fast.output_dir + "/none"))
    train(replace(fast, lr=0.1, resume="never"))
    assert checkpoint.read_state(newest_of(fast))["config"]["lr"] == 0.1


def test_what_is_to_begin_anew_is_kept_until_it_can_begin(fast, tmp_path):
    train(fast)
    other = write_collection(tmp_path / "other", documents=60, queries=50, test=5, dev=5)
    kept = {path: path.read_bytes() for path in config_folder(fast).rglob("*.*") if path.is_file()}
    nonsense = dict(dataset="/nowhere/at/all"), dict(model="nonsense"), dict(dataset=str(other), loss="contrastive")
    for wrong in nonsense:
        with pytest.raises(InputError):
            train(replace(fast, resume="never", **wrong))
        assert {path: path.read_bytes() for path in kept if path.is_file()} == kept
    train(replace(fast, resume="never", dataset=str(other), max_steps=4))
    train(replace(fast, resume="auto", dataset=str(other), max_steps=4))
    assert [path.name for path in config_folder(fast).iterdir()].count("tokenizer") == 1
    assert not list(config_folder(fast).glob(".*"))


def test_input_that_cannot_be_used_is_named(fast, tmp_path):
    folder = write_collection(tmp_path / "nq")
    with pytest.raises(InputError, match="'nonsense' is no directory, no alias"):
        train(replace(fast, model="nonsense"))
    with pytest.raises(InputError, match="--variant dense has no experts; it cannot take top_k"):
        train(replace(fast, variant="dense", top_k=2))
    with pytest.raises(InputError, match="--loss contrastive needs pairs with label 0"):
        train(replace(fast, loss="contrastive"))
    with pytest.raises(InputError, match="--negatives mined needs a backbone"):
        train(replace(fast, negatives="mined"))
    (folder / "qrels" / "train.tsv").rename(tmp_path / "train.tsv")
    with pytest.raises(InputError, match=r"nq has no split 'train' to train on; it has dev, test: --dataset nq-train"):
        train(replace(fast, dataset="nq", data_dir=str(folder.parent)))
    if "triton" not in kernels.available_backends():
        with pytest.raises(InputError, match="--backend triton is not available here; expected one of auto, "):
            train(replace(fast, backend="triton"))
    train(fast)
    with pytest.raises(InputError, match="would be overwritten: give another --output-dir"):
        train(replace(fast, model=fast.output_dir))


def test_a_run_that_goes_on_with_more_steps_ends_as_one_that_had_them_from_the_start(fast, capsys):
    """Where the learning rate does not depend on the number of steps; how often it was validated changes no weight."""
    config = replace(fast, schedule="constant", warmup=0.0, dropout=0.2, noise=True)
    straight = replace(config, output_dir=config.output_dir + "-straight")
    train(straight)
    train(replace(config, max_steps=5, eval_every=2))
    capsys.readouterr()
    train(replace(config, max_steps=12, eval_every=3))
    said = "12 steps instead of 5: from step 5 on the learning rate is that of a run of 12 steps, now 100% of its peak"
    assert said in capsys.readouterr().out
    weights = ("step-00000012/model.safetensors", "step-00000012/optimizer.safetensors")
    for name in weights:
        assert (config_folder(config) / name).read_bytes() == (config_folder(straight) / name).read_bytes()
    losses = [[event["loss"] for event in log(each) if "loss" in event] for each in (config, straight)]
    assert losses[0] == losses[1]
    with pytest.raises(InputError, match="the run is at step 12 already; expected that or more, got 6"):
        train(replace(config, max_steps=6))


def test_several_data_sets_train_one_model_and_resume_to_the_same_bits(fast, folder, tmp_path, capsys):
    """One of them goes in half: which half is a function of the epoch, and an epoch has 8 steps."""
    other = write_collection(tmp_path / "other", documents=200, queries=180)
    config = replace(
        fast, dataset=f"{folder},{other}:0.5", schedule="constant", warmup=0.0, dropout=0.2, no_eval=True, max_steps=10
    )
    straight = replace(config, output_dir=config.output_dir + "-straight", no_eval=False)
    metrics = train(straight)
    shown = capsys.readouterr().out
    assert "140 training pairs x 0.5 an epoch" in shown
    assert re.search(r"^validation collection\d* dev: 20 queries, .*\n {11}other dev: 20 queries,", shown, re.MULTILINE)
    assert re.search(r"NDCG@10 0\.\d+ on average \(collection\d* dev 0\.\d+, other dev 0\.\d+\)", shown)
    each = [
        json.loads(path.read_text()) for path in sorted(Path(straight.output_dir, "datasets").glob("*/metrics.json"))
    ]
    assert len(each) == 2
    assert metrics["NDCG@10"] == pytest.approx(sum(one["NDCG@10"] for one in each) / 2)
    assert json.loads(Path(straight.output_dir, "metrics.json").read_text())["NDCG@10"] == metrics["NDCG@10"]
    assert "| **mean**" in Path(straight.output_dir, "README.md").read_text()
    assert moe_retrieval.search(f"{straight.output_dir}/datasets/other", ["abcd"], top_k=2)
    train(replace(config, max_steps=4))
    train(config)
    for name in ("model.safetensors", "optimizer.safetensors"):
        paths = [config_folder(each) / "step-00000010" / name for each in (config, straight)]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    steps = [event for event in log(config) if "by_dataset" in event]
    assert steps
    assert all(sum(event["by_dataset"].values()) / 2 == event["ndcg_at_10"] for event in steps)


def test_pairs_in_memory_train_as_the_same_pairs_in_a_file(fast, tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_RETRIEVAL_CACHE", str(tmp_path / "cache"))
    pairs = [(f"abcd efgh {number}", f"{number} is the answer") for number in range(60)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"query": query, "positive": answer}) + "\n" for query, answer in pairs))
    of_file = replace(fast, dataset=str(path), output_dir=f"{fast.output_dir}-file", max_steps=4)
    train(of_file)
    in_memory = replace(of_file, dataset=TrainConfig.dataset, output_dir=fast.output_dir)
    moe_retrieval.train(in_memory, pairs=pairs)
    ended = [Path(config.output_dir, "model.safetensors").read_bytes() for config in (of_file, in_memory)]
    assert ended[0] == ended[1]
    moe_retrieval.train(replace(in_memory, max_steps=6), pairs=pairs)
    with pytest.raises(InputError, match=r"is from a run with dataset .*pairs-\w+ \(now .*pairs-\w+\)"):
        moe_retrieval.train(in_memory, pairs=pairs[:-1])
    with pytest.raises(InputError, match="pairs take the place of a data set: expected one of both"):
        moe_retrieval.train(of_file, pairs=pairs)


def test_a_run_that_stopped_early_goes_on_with_more_patience(fast, capsys):
    config = replace(fast, eval_every=2, patience=1, lr=0.0)  # so that nothing ever gets better
    train(config)
    train(config)
    assert "the run stopped early at step 2: with a higher --patience, or 0, it goes on" in capsys.readouterr().out
    train(replace(config, patience=0))
    assert newest_of(config).name == "step-00000012"


def test_ctrl_c_saves_the_step_and_the_same_command_goes_on_to_the_same_bits(fast, capsys, monkeypatch):
    config = replace(fast, dropout=0.2, save_every=0)
    untouched = replace(config, output_dir=config.output_dir + "-untouched")
    train(untouched)
    before = signal.getsignal(signal.SIGINT)
    write = History.write

    def press(history, **event):
        write(history, **event)
        if event["step"] == 6 and "loss" in event:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(History, "write", press)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    assert "saved at step 7; the same command goes on" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before
    assert newest_of(config).name == "step-00000007"
    train(config)
    for name in ("model.safetensors", "checkpoints/step-00000012/optimizer.safetensors"):
        assert Path(config.output_dir, name).read_bytes() == Path(untouched.output_dir, name).read_bytes()


def test_ctrl_c_in_the_last_validation_ends_the_run_before_it_is_measured(fast, capsys, monkeypatch):
    config = replace(fast, no_eval=False)
    write = History.write

    def press(history, **event):
        write(history, **event)
        if event["step"] == 12 and "ndcg_at_10" in event:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(History, "write", press)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    said = capsys.readouterr().out
    assert "saved at step 12; the same command goes on" in said
    assert "measuring" not in said
    assert train(config).keys() == json.loads(Path(config.output_dir, "metrics.json").read_text()).keys() - {"run"}


def test_a_log_is_never_silent_for_long(fast, monkeypatch, capsys):
    """All long parts say how far they are; with a line a millisecond in the place of 30 seconds, training does here."""
    labels = []
    start = Meter.start
    monkeypatch.setattr(Meter, "start", lambda meter: labels.append(meter.label) or start(meter))
    monkeypatch.setattr("moe_retrieval.progress.EVERY", 0.001)
    train(replace(fast, negatives="bm25", num_negatives=1, no_eval=False, max_steps=4))
    shown = capsys.readouterr().err
    facts = r"loss \d+\.\d{4}, lr \d\.\de-\d\d, tokens/s [\d,]+"
    steps = rf"^training: \d of 4 steps, {facts}, (\d+\.\d a second|\d+\.\d s each), \d+:\d\d left$"
    assert re.search(steps, shown, re.MULTILINE)
    assert re.search(r"^training: 4 of 4 steps, in \d+:\d\d$", shown, re.MULTILINE)
    begin = [f"reading {fast.dataset}/corpus.jsonl", "training a tokenizer", "BM25 negatives", "training"]
    assert labels == [*begin, "BM25", "documents", "queries", "ranking", "documents", "index"]
    assert not [thread for thread in threading.enumerate() if thread.daemon and "_speak" in str(thread)]


def test_a_second_ctrl_c_ends_at_once(fast, monkeypatch):
    monkeypatch.setattr("moe_retrieval.training.interruption.TOGETHER", 0.0)
    write = History.write

    def press(history, **event):
        write(history, **event)
        if event["step"] == 6 and "loss" in event:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(History, "write", press)
    with pytest.raises(KeyboardInterrupt):
        train(fast)
    assert newest_of(fast).name == "step-00000004"


def test_a_second_stage_starts_as_the_run_that_it_is_given(fast, tmp_path, capsys):
    first = replace(fast, doc_length=20, query_prompt="ask: ")
    train(first)
    begun = moe_retrieval.load(first.output_dir, "fp32", "cpu")
    second = replace(
        fast, model=first.output_dir, output_dir=str(tmp_path / "second"), negatives="mined", num_negatives=2,
        doc_length=None, query_length=None, aux_coef=0.2, lr=0.0, max_steps=1, no_eval=False,
    )  # fmt: skip
    train(second)
    ended = moe_retrieval.load(second.output_dir, "fp32", "cpu")
    assert (ended.usage.doc_length, ended.usage.query_prompt) == (20, "ask: ")
    assert ended.settings.experts.balance_coef == 0.2
    assert np.array_equal(ended.encode(["abcd efgh"]), begun.encode(["abcd efgh"]))
    assert f"| before ({first.output_dir}) |" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(InputError, match="is a run whose experts stay where they are: expected --variant sb-moe"):
        train(replace(second, variant="moe", output_dir=str(tmp_path / "third")))
    with pytest.raises(InputError, match="is a run with experts of its own: num_experts cannot be changed"):
        train(replace(second, num_experts=7, output_dir=str(tmp_path / "third")))


def test_experts_that_are_partly_drawn_anew_are_the_same_on_every_way_there(fast, tmp_path):
    """A function of the seed, and in the checkpoints of a run that goes on."""
    train(replace(fast, variant="dense"))
    config = replace(
        fast, model=fast.output_dir, variant="moe", drop_upcycling=0.5, output_dir=str(tmp_path / "moe"), max_steps=6
    )
    straight = replace(config, output_dir=str(tmp_path / "straight"), schedule="constant", warmup=0.0)
    train(straight)
    broken = replace(straight, output_dir=config.output_dir)
    train(replace(broken, max_steps=3))
    train(broken)
    copies = replace(straight, drop_upcycling=None, output_dir=str(tmp_path / "copies"))
    train(copies)
    ended = [(newest_of(each) / "model.safetensors").read_bytes() for each in (straight, broken, copies)]
    assert ended[0] == ended[1] != ended[2]
    with pytest.raises(InputError, match="is a run with experts of its own: expected no --drop-upcycling"):
        train(replace(config, model=straight.output_dir, output_dir=str(tmp_path / "second")))


def test_a_dense_run_is_a_backbone_for_any_variant(fast, tmp_path):
    first = replace(fast, variant="dense")
    train(first)
    second = replace(
        fast, model=first.output_dir, variant="moe", output_dir=str(tmp_path / "second"), lr=0.0, max_steps=1,
        weight_decay=0.0,
    )  # fmt: skip
    train(second)
    texts = ["abcd efgh", "dcba"]
    begun, ended = (moe_retrieval.load(each.output_dir, "fp32", "cpu") for each in (first, second))
    assert ended.settings.variant == "moe"
    assert np.allclose(ended.encode(texts), begun.encode(texts), atol=1e-5)


def test_a_run_goes_on_from_a_step_that_is_not_its_newest(fast):
    train(fast)
    expected = (config_folder(fast) / "step-00000012" / "model.safetensors").read_bytes()
    back = f"{fast.output_dir}/checkpoints/step-00000008"
    train(replace(fast, resume=back, output_dir=f"{fast.output_dir}/../run"))
    assert [path.name for path in checkpoint.find_all(config_folder(fast))] == ["step-00000008", "step-00000012"]
    assert (config_folder(fast) / "step-00000012" / "model.safetensors").read_bytes() == expected
    other = replace(fast, seed=1, output_dir=fast.output_dir + "-other")
    train(other)
    with pytest.raises(InputError, match=r"other/checkpoints/step-00000008 is from a run with seed 1 \(now 0\)"):
        train(replace(fast, resume=back, output_dir=other.output_dir))


def test_a_run_that_goes_on_elsewhere_has_its_best_model_and_its_tokenizer_there(fast):
    first = replace(fast, max_steps=4, dropout=0.2)
    train(first)
    begun = config_folder(first) / "step-00000004"
    there = replace(first, output_dir=fast.output_dir + "-there", resume=str(begun))
    with pytest.raises(InputError, match="the run is at step 4 already"):
        train(replace(there, max_steps=2))
    assert not Path(there.output_dir, "model.safetensors").exists()
    train(there)
    brought = "model.safetensors", "tokenizer.json", "config.json", "README.md", "checkpoints/tokenizer/tokenizer.json"
    for name in brought:
        assert Path(there.output_dir, name).read_bytes() == Path(first.output_dir, name).read_bytes(), name
    for each in (there, first):
        train(replace(each, max_steps=8))
    ended = [newest_of(each) / "model.safetensors" for each in (there, first)]
    assert ended[0].read_bytes() == ended[1].read_bytes()
    shutil.rmtree(first.output_dir)
    train(replace(there, resume="auto", max_steps=12))
    assert newest_of(there).name == "step-00000012"


def test_a_checkpoint_without_its_run_goes_on_only_where_there_is_a_model(fast, tmp_path):
    first = replace(fast, max_steps=4)
    train(first)
    for name in ("step-00000004", "tokenizer"):
        shutil.copytree(config_folder(first) / name, tmp_path / "alone" / name)
    alone = str(tmp_path / "alone" / "step-00000004")
    with pytest.raises(InputError, match="has the best model so far: expected a checkpoint where its run left it"):
        train(replace(fast, output_dir=fast.output_dir + "-there", resume=alone))
    train(replace(fast, resume=alone))
    assert newest_of(fast).name == "step-00000012"


def damage(checkpoint_folder):
    path = checkpoint_folder / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(fast, caplog):
    train(fast)
    expected = Path(fast.output_dir, "model.safetensors").read_bytes()
    older, newest = checkpoint.find_all(config_folder(fast))
    damage(newest)
    train(fast)
    assert f"{newest}/optimizer.safetensors: is damaged" in caplog.text
    assert f"the run goes on from {older}" in caplog.text
    assert [path.name for path in checkpoint.find_all(config_folder(fast))] == [older.name, newest.name]
    assert Path(fast.output_dir, "model.safetensors").read_bytes() == expected
    damage(newest)
    with pytest.raises(InputError, match=r"step-00000012/optimizer.safetensors: is damaged"):
        train(replace(fast, resume=str(newest)))
    train(replace(fast, resume=str(older)))
    tokenizer = config_folder(fast) / "tokenizer" / "tokenizer.json"
    definition = tokenizer.read_text()
    tokenizer.write_text(definition.replace("[UNK]", "[UNC]"))
    with pytest.raises(InputError, match=r"tokenizer.json: is damaged"):
        train(fast)
    tokenizer.write_text(definition)
    damage(older)
    damage(newest)
    with pytest.raises(InputError, match=r"no checkpoint in .* is whole: --resume never begins anew"):
        train(fast)


def test_a_log_whose_lines_are_damaged_keeps_the_others(fast):
    train(fast)
    path = Path(fast.output_dir, "log.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        b"".join(
            [lines[0], b'{"loss": 1}\n', b"\xff}\n", b"[1}\n", b"[" * 100_000 + b"\n", b'{"step": "x"}\n', *lines[1:]]
        )
    )
    train(fast)
    assert path.read_bytes() == b"".join(lines)


def test_a_reader_that_goes_away_ends_no_run(fast):
    """The first line, as `head -1` takes it; standard error goes to the same place."""
    flags = to_arguments(TrainConfig, vars(fast), "test")
    command = [sys.executable, "-u", "-m", "moe_retrieval.train", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout.readline().startswith("training ")
    process.stdout.close()
    assert process.wait(timeout=300) == 0
    assert newest_of(fast).name == "step-00000012"


def test_a_disk_that_is_too_small_is_seen_before_the_first_step(fast, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(InputError, match=r"/run: 1 MB free, \d+ MB needed"):
        train(fast)
    assert not config_folder(fast).joinpath("step-00000004").exists()


def test_a_disk_needs_room_for_the_checkpoints_that_there_will_be_alone(fast, monkeypatch):
    """However many may stay: of 12 steps, with one every 4, there are 3, and one more while it is written."""
    asked = []
    monkeypatch.setattr(loop, "check_space", lambda folder, needed: asked.append(needed))
    train(replace(fast, keep_checkpoints=10**6, output_dir=f"{fast.output_dir}-many"))
    train(replace(fast, keep_checkpoints=4))
    assert asked[0] == asked[1]
    train(replace(fast, keep_checkpoints=2, train="experts", output_dir=f"{fast.output_dir}-experts"))
    weights = sum(tensor.numel() for tensor in load_file(f"{fast.output_dir}/model.safetensors").values())
    moments = load_file(newest_of(replace(fast, output_dir=f"{fast.output_dir}-experts")) / "optimizer.safetensors")
    learned = sum(tensor.numel() for path, tensor in moments.items() if path.startswith("exp_avg/"))
    tokenizer = 4000  # bytes that lie there already
    assert 0 <= 4 * (3 * (weights + 2 * learned) + weights) - asked[2] < tokenizer


def test_a_run_goes_on_with_the_data_that_it_began_with_alone(fast, tmp_path):
    """The same name may be of other data by then."""
    folder = write_collection(tmp_path / "words")
    config = replace(fast, dataset=str(folder), max_steps=8)
    train(config)
    kept = {path: path.read_bytes() for path in Path(config.output_dir).rglob("*.*") if path.is_file()}
    write_collection(folder, documents=121)
    with pytest.raises(InputError, match=r"step-00000008 is from a run on other data, .*: words \w+ \(now"):
        train(replace(config, max_steps=12))
    assert {path: path.read_bytes() for path in kept} == kept
    for path in checkpoint.find_all(config_folder(config)):  # an older version did not say
        state = checkpoint.read_state(path)
        del state["data"]
        write_sealed(path / "state.json", state)
    train(replace(config, max_steps=12))
    assert newest_of(config).name == "step-00000012"


def test_two_runs_in_one_folder_are_refused(fast):
    with (
        locked(Path(fast.output_dir)),
        pytest.raises(InputError, match=f"run is in use by process {os.getpid()}: wait for its end"),
    ):
        train(fast)
    train(fast)


def finite(path):
    return all(bool(tensor.isfinite().all()) for tensor in load_file(path).values())


@pytest.mark.parametrize("options", [dict(), dict(precision="fp16"), dict(save_every=0, eval_every=0)], ids=str)
def test_a_model_that_is_no_number_any_more_is_no_best_one(options, fast):
    with pytest.raises(InputError, match=r"not finite since step [123]\b.*the best model, of step [0-2], is as it was"):
        train(replace(fast, **(dict(lr=1e36, clip=0.0, eval_every=1, save_every=1) | options)))
    assert finite(f"{fast.output_dir}/model.safetensors")
    assert all(finite(path / "model.safetensors") for path in checkpoint.find_all(config_folder(fast)))


def test_without_queries_to_validate_on_it_is_no_best_one_either(fast, tmp_path):
    folder = write_collection(tmp_path / "few", queries=40, dev=0, test=10)
    (folder / "qrels" / "dev.tsv").unlink()
    with pytest.raises(InputError, match=r"not finite since step \d"):
        train(replace(fast, dataset=str(folder), lr=1e36, clip=0.0, max_steps=3))
    assert finite(f"{fast.output_dir}/model.safetensors")


def test_of_equal_scores_the_later_step_is_the_best_but_no_reason_to_go_on(fast, monkeypatch):
    """Of a model from scratch, the first of them has random weights."""
    monkeypatch.setattr(Validator, "score", lambda *arguments: 0.5)
    train(replace(fast, patience=2))
    state = checkpoint.read_state(newest_of(fast))["progress"]
    assert (state["best_step"], state["step"], state["stopped_early"]) == (8, 8, True)
    exported = load_file(f"{fast.output_dir}/model.safetensors")
    last = load_file(newest_of(fast) / "model.safetensors")
    assert all(torch.equal(exported[name], last[name]) for name in last)


def test_the_last_model_is_kept_where_that_is_asked_for(fast, monkeypatch, capsys):
    told_scores = ["0.9000", "0.5000", "0.7000", "0.6000"]
    scores = iter(map(float, told_scores))
    monkeypatch.setattr(Validator, "score", lambda *arguments: next(scores))
    train(replace(fast, keep="last"))
    exported = load_file(f"{fast.output_dir}/model.safetensors")
    last = load_file(newest_of(fast) / "model.safetensors")
    assert all(torch.equal(exported[name], last[name]) for name in last)
    assert checkpoint.read_state(newest_of(fast))["progress"]["best_step"] == 12
    told = re.findall(r"step \d+: NDCG@10 0\.\d{4} on dev.*", capsys.readouterr().out)
    assert told == [f"step {step}: NDCG@10 {score} on dev" for step, score in zip((0, 4, 8, 12), told_scores)]


def test_intervals_may_be_epochs_and_as_many_checkpoints_stay_as_are_asked_for(fast):
    """Of 50 pairs, in batches of 16, an epoch has 4 steps."""
    config = replace(fast, eval_every="1e", save_every="0.5e", keep_checkpoints=4)
    train(config)
    assert [event["step"] for event in log(config) if "ndcg_at_10" in event] == [0, 4, 8, 12]
    kept = [int(path.name.removeprefix("step-")) for path in checkpoint.find_all(config_folder(config))]
    assert kept == [6, 8, 10, 12]
    train(replace(config, keep_checkpoints=1, max_steps=13))
    assert [path.name for path in checkpoint.find_all(config_folder(config))] == ["step-00000013"]


@pytest.mark.parametrize("every", [Fraction(1), Fraction(4), Fraction(4, 3), Fraction(7, 2), Fraction(1, 3)])
def test_an_interval_ends_with_the_first_step_at_or_after_it(every):
    expected = {math.ceil(every * number) for number in range(1, 200)} & set(range(1, 40))
    assert {step for step in range(1, 40) if is_due(step, every)} == expected
    assert not is_due(4, Fraction(0))


def test_a_run_from_before_a_flag_goes_on_with_what_the_flag_then_stood_for(fast):
    newer = ("train", "train_queries", "gradient_checkpointing", "keep", "keep_checkpoints")
    train(replace(fast, max_steps=8))
    for path in checkpoint.find_all(config_folder(fast)):
        state = checkpoint.read_state(path)
        state["config"] = {name: value for name, value in state["config"].items() if name not in newer}
        write_sealed(path / "state.json", state)
    with pytest.raises(InputError, match=r"is from a run with keep best \(now last\): give the same flags"):
        train(replace(fast, keep="last"))
    train(fast)
    assert newest_of(fast).name == "step-00000012"


@pytest.mark.parametrize("variant", ["sb-moe", "moe", "dense-wide"])
def test_experts_can_be_trained_alone(variant, fast, capsys):
    start = replace(
        fast,
        variant=variant,
        lr=0.0,
        expert_lr=0.0,
        weight_decay=0.0,
        max_steps=1,
        output_dir=f"{fast.output_dir}-start",
    )
    train(start)
    config = replace(fast, variant=variant, train="experts", dropout=0.1, chunk_size=5)
    train(config)
    begun, ended = (load_file(newest_of(each) / "model.safetensors") for each in (start, config))
    added = ("block.", "encoder.blocks.1.ffn." if variant == "moe" else "block.")
    assert {name for name in begun if not torch.equal(begun[name], ended[name])} == {
        name for name in begun if name.startswith(added)
    }
    moments = load_file(newest_of(config) / "optimizer.safetensors")
    assert {path.split("/", 1)[1] for path in moments} == {name for name in begun if name.startswith(added)}
    trained = sum(tensor.numel() for name, tensor in begun.items() if name.startswith(added))
    assert f"{trained:,} trained" in capsys.readouterr().out


def test_blocks_that_compute_again_train_to_the_same_bits(fast):
    config = replace(fast, variant="moe", layers="all", noise=True, dropout=0.2, max_steps=6)
    again = replace(config, gradient_checkpointing=True, output_dir=f"{fast.output_dir}-again")
    train(config)
    train(again)
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (newest_of(again) / name).read_bytes() == (newest_of(config) / name).read_bytes()
    assert [event["loss"] for event in log(config) if "loss" in event] == [
        event["loss"] for event in log(again) if "loss" in event
    ]


def break_losses(monkeypatch, after):
    """Those of the steps after this one are no numbers; -> the steps that were taken"""
    plain = Objective.__call__
    calls = []

    def broken(self, *arguments):
        calls.append(0)
        return plain(self, *arguments) * (float("nan") if len(calls) > after else 1)

    monkeypatch.setattr(Objective, "__call__", broken)
    return calls


def test_a_run_whose_last_losses_are_not_finite_fails_however_often_it_is_asked(fast, tmp_path, monkeypatch):
    """Where nothing validates it. Its weights are as they were before those steps, and so is the best model."""
    folder = write_collection(tmp_path / "few", queries=40, dev=0, test=10)
    (folder / "qrels" / "dev.tsv").unlink()
    config = replace(fast, dataset=str(folder), no_eval=False)
    steps = break_losses(monkeypatch, after=9)
    for _ in range(2):
        with pytest.raises(InputError, match=r"gradients are not finite since step 10:.*the best model, of step 8,"):
            train(config)
    assert len(steps) == 12  # the second time it only says so
    assert finite(f"{config.output_dir}/model.safetensors")
    assert not Path(config.output_dir, "metrics.json").exists()


def test_a_run_without_one_finite_loss_fails_however_well_its_start_is_validated(fast, monkeypatch):
    break_losses(monkeypatch, after=0)
    for _ in range(2):
        with pytest.raises(InputError, match=r"gradients are not finite since step 1:"):
            train(replace(fast, no_eval=False))
    assert not Path(fast.output_dir, "metrics.json").exists()


def test_the_last_steps_of_a_validated_run_may_be_skipped(fast, monkeypatch, capsys):
    break_losses(monkeypatch, after=11)
    metrics = train(replace(fast, no_eval=False))
    assert json.loads(Path(fast.output_dir, "metrics.json").read_text())["NDCG@10"] == metrics["NDCG@10"]
    assert Path(fast.output_dir, "index", "index.json").is_file()
    said = r"warning: the losses or their gradients are not finite since step 12\b"
    assert re.search(said, capsys.readouterr().out)


def test_steps_are_counted():
    config = TrainConfig()
    assert count_steps(config, 10) == 100
    assert count_steps(replace(config, epochs=3), 10) == 30
    assert count_steps(replace(config, epochs=3, grad_accum=4), 10) == 8
    assert count_steps(replace(config, epochs=3, max_steps=7), 10) == 7


# Killed runs.


def launch(config, size):
    return start(size, "-m", "moe_retrieval.train", *to_arguments(TrainConfig, vars(config), "test"))


def kill(processes):
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(size, fast):
    """Dropout and noise on, in the middle of whatever the run was doing, twice."""
    config = replace(
        fast, variant="moe", noise=True, dropout=0.1, max_steps=40, eval_every=5, save_every=1, num_layers=1
    )
    config = replace(config, layers="0", grad_accum=2, chunk_size=6)
    untouched = replace(config, output_dir=config.output_dir + "-untouched")
    finish(launch(untouched, size))
    for wait in (0.03, 0.17):
        processes = launch(config, size)
        try:
            before = newest_of(config)
            deadline = time.time() + 120
            while newest_of(config) == before and time.time() < deadline:
                time.sleep(0.002)
            time.sleep(wait)
        finally:
            kill(processes)
        newest = newest_of(config)
        assert newest is not None
        assert newest.name != "step-00000040", "the run ended before it was killed"
    finish(launch(config, size))
    for path in (
        "model.safetensors",
        "checkpoints/step-00000040/model.safetensors",
        "checkpoints/step-00000040/optimizer.safetensors",
    ):
        expected = Path(untouched.output_dir, path).read_bytes()
        assert Path(config.output_dir, path).read_bytes() == expected, path
    kept = [{k: v for k, v in event.items() if k != "time"} for event in log(config)]
    assert kept == [{k: v for k, v in event.items() if k != "time"} for event in log(untouched)]


@pytest.mark.slow
def test_ctrl_c_of_one_process_stops_and_saves_all(fast):
    """Ten seconds: two processes that import torch."""
    config = replace(fast, max_steps=5000, save_every=0, eval_every=0)
    processes = launch(config, 2)
    log_file = Path(config.output_dir, "log.jsonl")
    deadline = time.time() + 120
    while not (log_file.is_file() and '"loss"' in log_file.read_text()) and time.time() < deadline:
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGINT)
    outputs = finish(processes, status=130)
    (step,) = re.findall(r"saved at step (\d+); the same command goes on", outputs[0])
    newest = newest_of(config)
    assert newest.name == f"step-{int(step):08d}"
    assert {"rng-0.safetensors", "rng-1.safetensors"} < {path.name for path in newest.iterdir()}
    assert "Traceback" not in "".join(outputs)


@pytest.mark.slow
def test_two_processes_train_measure_and_index_together(fast, tmp_path):
    """As one process does, but for the order of sums in training; noise would be each rank's own."""
    config = replace(fast, noise=False, lr=1e-3, no_eval=False)
    finish(launch(config, 2))
    alone = replace(config, output_dir=config.output_dir + "-alone")
    train(alone)
    told, expected = log(config), log(alone)
    assert [event.keys() for event in told] == [event.keys() for event in expected]
    for name, rounding in (("loss", 1e-5), ("ndcg_at_10", 0)):  # cosines' last digits, over a temperature of 0.05
        values, others = ([event[name] for event in events if name in event] for events in (told, expected))
        assert len(values) == (12 if name == "loss" else 4)
        assert values == pytest.approx(others, rel=0, abs=rounding)
    together, measured_alone = (
        json.loads(Path(each.output_dir, "metrics.json").read_text()) for each in (config, alone)
    )
    for each in (together, measured_alone):
        del each["run"]
    assert together == measured_alone  # rounding moves no document past another
    run, other = (read_run(Path(each.output_dir, "run.trec")) for each in (config, alone))
    for query, scores in other.items():
        assert run[query] == pytest.approx(scores, rel=0, abs=1e-5)

    again = str(tmp_path / "again")  # what two processes measured and indexed, one finds in the same bits
    assert together == evaluate(EvaluateConfig(config.output_dir, config.dataset, precision="fp32", output_dir=again))
    assert Path(again, "run.trec").read_bytes() == Path(config.output_dir, "run.trec").read_bytes()
    model = moe_retrieval.load(config.output_dir, "fp32", "cpu")
    documents = data.load(config.dataset).documents
    build_index(model, documents, again, model_path=config.output_dir)
    for name in ("index.faiss", "documents.jsonl", "starts.npy"):
        assert Path(again, name).read_bytes() == Path(config.output_dir, "index", name).read_bytes()


@pytest.mark.slow
def test_input_that_rank_0_cannot_use_ends_every_rank_with_status_2(fast):
    outputs = finish(launch(replace(fast, dataset="/nowhere/at/all"), 2), status=2)
    assert [output.count("error:") for output in outputs] == [1, 0]
    assert "Traceback" not in "".join(outputs)
    with locked(Path(fast.output_dir)):
        outputs = finish(launch(fast, 2), status=2)
    assert [output.count("is in use by") for output in outputs] == [1, 0]
    assert "Traceback" not in "".join(outputs)
