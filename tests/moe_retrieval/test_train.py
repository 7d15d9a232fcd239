"""Whole runs, of a model of a few thousand parameters: what they leave, and that nothing stops them for good."""

import json
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
import torch

import kernels
import moe_retrieval
from moe_retrieval import checkpoint, data
from moe_retrieval.config import TrainConfig
from moe_retrieval.distributed import World
from moe_retrieval.encoder import pack
from moe_retrieval.errors import InputError
from moe_retrieval.feed import Feed
from moe_retrieval.losses import document_key
from moe_retrieval.preparation import make_pairs
from moe_retrieval.train import count_steps, train
from moe_retrieval.validation import ndcg, split_off
from moe_retrieval.watch import GateWatch, LossWatch, expert_likeness
from tests.moe_retrieval.collection import write_collection
from tests.moe_retrieval.steps import finish, start
from tests.moe_retrieval.test_distributed import ALONE
from tests.moe_retrieval.test_encoder import make_bert
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer, token_lists

SCRATCH = dict(model="scratch", hidden=24, num_layers=2, heads=3, ff=40, vocab_size=300, doc_length=24, query_length=12)
FAST = TrainConfig(
    **SCRATCH, max_steps=12, batch_size=16, eval_every=4, save_every=4, lr=3e-3, precision="fp32", no_eval=True
)


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
    assert model.settings.query_prompt == options.get("query_prompt", "")


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
        return (checkpoint.find_newest(config_folder(config)) / "model.safetensors").read_bytes()

    assert final(1, "a") == final(1, "b")
    assert final(2, "c") != final(1, "a")


def config_folder(config):
    return Path(config.output_dir) / "checkpoints"


def test_patience_stops_and_the_best_stays(fast):
    config = replace(fast, max_steps=100, eval_every=2, patience=2, lr=1.0, clip=0.0)
    train(config)
    scores = {event["step"]: event["ndcg_at_10"] for event in log(config) if "ndcg_at_10" in event}
    best = max(scores, key=scores.get)
    assert max(scores) == best + 4 < 100
    state = checkpoint.read_state(checkpoint.find_newest(config_folder(config)))
    assert state["progress"]["best_step"] == best
    assert state["progress"]["stopped_early"]


def test_resume_wants_the_same_run(fast):
    train(fast)
    with pytest.raises(InputError, match=r"is from a run with lr 0.003 \(now 0.1\): give the same flags"):
        train(replace(fast, lr=0.1))
    train(replace(fast, save_every=3))
    with pytest.raises(InputError, match=r"--resume .*/none: expected auto, never, or a directory like"):
        train(replace(fast, resume=fast.output_dir + "/none"))
    train(replace(fast, lr=0.1, resume="never"))
    assert checkpoint.read_state(checkpoint.find_newest(config_folder(fast)))["config"]["lr"] == 0.1


def test_input_that_cannot_be_used_is_named(fast, tmp_path):
    with pytest.raises(InputError, match="'nonsense' is no directory, no alias"):
        train(replace(fast, model="nonsense"))
    with pytest.raises(InputError, match="--variant dense has no experts; it cannot take top_k"):
        train(replace(fast, variant="dense", top_k=2))
    with pytest.raises(InputError, match="--loss contrastive needs pairs with label 0"):
        train(replace(fast, loss="contrastive"))
    with pytest.raises(InputError, match="--negatives mined needs a backbone"):
        train(replace(fast, negatives="mined"))
    if "triton" not in kernels.available_backends():
        with pytest.raises(InputError, match="--backend triton is not available here; expected one of auto, "):
            train(replace(fast, backend="triton"))
    train(fast)
    with pytest.raises(InputError, match="is a run; expected a backbone"):
        train(replace(fast, model=fast.output_dir, output_dir=str(tmp_path / "other")))


def test_steps_are_counted():
    config = TrainConfig()
    assert count_steps(config, 10) == 100
    assert count_steps(replace(config, epochs=3), 10) == 30
    assert count_steps(replace(config, epochs=3, grad_accum=4), 10) == 8
    assert count_steps(replace(config, epochs=3, max_steps=7), 10) == 7


# Killed runs.


def launch(config, size):
    given = {name.replace("_", "-"): value for name, value in vars(config).items() if value is not None}
    flags = [f"--{name}={value}" for name, value in given.items() if name != "no-eval"]
    return start(size, "-m", "moe_retrieval.train", *flags, *["--no-eval"] * config.no_eval)


def kill(processes):
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("size", [1, *(pytest.param(size, marks=pytest.mark.slow) for size in (2, 4))])
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
            before = checkpoint.find_newest(config_folder(config))
            deadline = time.time() + 120
            while checkpoint.find_newest(config_folder(config)) == before and time.time() < deadline:
                time.sleep(0.002)
            time.sleep(wait)
        finally:
            kill(processes)
        newest = checkpoint.find_newest(config_folder(config))
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
def test_two_processes_train_measure_and_index_together(fast, folder):
    finish(launch(replace(fast, no_eval=False), 2))
    finish_alone = replace(fast, output_dir=fast.output_dir + "-alone", no_eval=False)
    train(finish_alone)
    together = json.loads(Path(fast.output_dir, "metrics.json").read_text())
    alone = json.loads(Path(finish_alone.output_dir, "metrics.json").read_text())
    assert together["NDCG@10"] == pytest.approx(alone["NDCG@10"], abs=0.05)
    assert Path(fast.output_dir, "index", "index.json").is_file()


def test_input_that_rank_0_cannot_use_ends_every_rank_with_status_2(fast):
    outputs = finish(launch(replace(fast, dataset="/nowhere/at/all"), 2), status=2)
    assert [output.count("error:") for output in outputs] == [1, 0]
    assert "Traceback" not in "".join(outputs)


# The pieces.


def test_ranks_share_each_batch_and_see_every_pair_once(folder):
    collection = data.load(str(folder))
    pairs = make_pairs(replace(FAST, negatives="bm25", num_negatives=2), collection, ALONE)
    retriever, tokenizer = tiny_retriever(), tiny_tokenizer()
    split, queries, rows = split_off(collection, pairs)
    assert (split, len(queries), len(rows)) == ("dev", 20, 50)

    def feed(rank, size):
        return Feed(pairs, rows, tokenizer, retriever.settings, World(rank, size, torch.device("cpu")), 16, seed=3)

    whole = feed(0, 1)
    for number in range(2 * whole.batches_an_epoch):
        batch = whole.batch(number)
        shares = [feed(rank, 3).batch(number) for rank in range(3)]
        assert [len(share.queries) for share in shares] == shares[0].targets.counts
        for rank, share in enumerate(shares):
            assert share.queries == batch.queries[rank::3]
            assert torch.equal(share.targets.keys_NC, batch.targets.keys_NC[rank::3])
            n = len(batch.queries)
            columns = [batch.documents[column * n : (column + 1) * n][rank::3] for column in range(3)]
            assert share.documents == [tokens for column in columns for tokens in column]
    seen = [
        key for number in range(whole.batches_an_epoch) for key in whole.batch(number).targets.keys_NC[:, 0].tolist()
    ]
    assert sorted(seen) == sorted(document_key(f"d{number}") for number in range(50))
    assert whole.batch(1).queries == feed(0, 1).batch(1).queries != whole.batch(0).queries


def test_a_tenth_of_the_training_queries_is_held_out_where_there_is_no_dev_split(tmp_path):
    write_collection(tmp_path, documents=400, queries=350)
    (tmp_path / "qrels" / "dev.tsv").unlink()
    collection = data.load(str(tmp_path))
    pairs = make_pairs(FAST, collection, ALONE)
    split, queries, rows = split_off(collection, pairs)
    assert (split, len(queries), len(rows)) == ("train", 31, 310 - 31)
    assert not {pairs.pairs[row][0] for row in rows} & set(queries)


def test_the_validation_measure_is_that_of_trec_eval():
    generator = torch.Generator().manual_seed(0)
    gains = torch.randint(0, 3, (9, 40), generator=generator).double() * (torch.rand(9, 40, generator=generator) < 0.2)
    gains[:, 0] = 1
    ranking = torch.stack([torch.randperm(40, generator=generator) for _ in range(9)])[:, :10]
    qrels = {f"q{i}": {f"d{j}": int(gain) for j, gain in enumerate(row)} for i, row in enumerate(gains.tolist())}
    run = {f"q{i}": {f"d{j}": 1.0 / (k + 1) for k, j in enumerate(row)} for i, row in enumerate(ranking.tolist())}
    per_query = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    assert ndcg(gains, ranking) == pytest.approx(np.mean([row["ndcg_cut_10"] for row in per_query.values()]), abs=1e-12)


def test_the_gate_is_watched():
    retriever = tiny_retriever("moe").train()
    watch = GateWatch(retriever)
    (name, layer), *_ = watch.layers.items()

    def look():
        with watch.looking(retriever):
            retriever(*pack(token_lists(40)))
        return list(watch.warnings())

    assert not look()
    assert len(watch.shares()[name]) == 4
    assert sum(watch.shares()[name]) == pytest.approx(1, abs=0.01)
    with torch.no_grad():
        layer.router.weight.zero_()  # a tie goes to the lower index
    watch.counts.clear()
    (collapse,) = look()
    assert collapse.startswith(f"collapse: 2 of 4 experts of {name} take 100%")
    assert "--aux-coef" in collapse
    with torch.no_grad():
        for stack in layer.experts.parameters():
            stack[:] = stack[:1]
    assert [warning.split(":")[0] for warning in look()] == ["collapse", "redundancy"]
    assert [warning.split(":")[0] for warning in watch.warnings(experts_had_time=False)] == ["collapse"]
    with torch.no_grad():
        layer.experts.down_weight.zero_()
        layer.experts.down_bias.zero_()
    assert expert_likeness(layer, watch.inputs[name]) == 0


def test_the_loss_is_watched():
    watch = LossWatch()
    assert all(watch.warning(step, 1 + 0.1 * (step % 3), 1.0) is None for step in range(20))
    assert "instability: step 20 has loss 5, usually it is 1." in watch.warning(20, 5.0, 1.0)
    assert "was skipped" in watch.warning(21, float("nan"), 1.0)
    assert watch.warning(22, 1.0, 1.0) is None
    for step in range(19):
        assert "was skipped" in watch.warning(step, 1.0, float("inf"))
    with pytest.raises(InputError, match="20 steps in a row without a finite gradient"):
        watch.warning(20, 1.0, float("inf"))
