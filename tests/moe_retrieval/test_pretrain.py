"""Pre-training: what it learns, what it leaves for training, that it goes on bit for bit, and what it refuses."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import moe_retrieval
from moe_retrieval.cli import parse
from moe_retrieval.errors import InputError
from moe_retrieval.models.export import save
from moe_retrieval.models.tokenizer import load_tokenizer
from moe_retrieval.presets import FROM_SCRATCH
from moe_retrieval.pretrain import PRESETS, main
from moe_retrieval.train import train
from moe_retrieval.training.pretrain_config import PretrainConfig
from moe_retrieval.training.pretraining import pretrain, split_off
from tests.moe_retrieval.corpora import write_lines
from tests.moe_retrieval.interruptions import pressed_at
from tests.moe_retrieval.ranks import run_ranks
from tests.moe_retrieval.rare_words import FAST, write_collection
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer

COLOURS = {"grass": "green", "snow": "white", "coal": "black", "blood": "red", "sky": "blue", "sun": "yellow"}


def write_corpus(folder, texts=120):
    """Every second word can be guessed from the one before it."""
    things = list(COLOURS)
    written = [" ".join(f"{things[(row * step) % 6]} is {COLOURS[things[(row * step) % 6]]}" for step in (1, 2, 5))
               for row in range(texts)]  # fmt: skip
    return write_lines(folder / "corpus.jsonl", [{"_id": f"{row}", "text": text} for row, text in enumerate(written)])


@pytest.fixture
def small(tmp_path):
    return PretrainConfig(
        corpus=str(write_corpus(tmp_path)), output_dir=str(tmp_path / "run"), hidden=24, num_layers=2, heads=2, ff=48,
        vocab_size=300, max_positions=32, length=24, max_steps=6, save_every=3, batch_size=16, dropout=0.1,
        precision="fp32",
    )  # fmt: skip


def losses(config):
    with open(f"{config.output_dir}/log.jsonl") as file:
        return [json.loads(line)["loss"] for line in file]


def weights(config):
    return load_file(f"{config.output_dir}/model.safetensors")


@pytest.mark.parametrize("tokenizer", ["wordpiece", "bpe"])
def test_it_learns_to_guess_and_training_begins_as_it(small, tokenizer, tmp_path, capsys):
    config = replace(small, tokenizer=tokenizer, max_steps=150, lr=1e-2, dropout=0.0)
    guessed = pretrain(config)
    assert losses(config)[-1] < 0.5 * losses(config)[0]
    assert guessed.share > 0.4  # the most frequent word is a third of all
    assert guessed.loss < 0.5 * losses(config)[0]
    assert f"guesses {guessed.share:.1%} of the hidden tokens of 6 texts that were held out" in capsys.readouterr().out
    words = load_tokenizer(config.output_dir)
    assert ("Ġis" in [words.token(token) for token in range(words.vocab_size)]) == (tokenizer == "bpe")
    model = moe_retrieval.load(config.output_dir, "fp32", "cpu")
    assert (model.settings.variant, model.encode(["grass"]).shape) == ("dense", (1, 24))
    words = write_collection(tmp_path / "words")
    run = replace(FAST, model=config.output_dir, dataset=str(words), output_dir=str(tmp_path / "second"), max_steps=1,
                  lr=0.0, expert_lr=0.0, variant="moe")  # fmt: skip
    train(run)
    started, trained = weights(config), load_file(tmp_path / "second" / "model.safetensors")
    assert torch.equal(started["encoder.tokens.weight"], trained["encoder.tokens.weight"])
    up = started["encoder.blocks.1.ffn.up.weight"]
    assert torch.equal(trained["encoder.blocks.1.ffn.experts.up_weight"], up.expand(8, -1, -1))


def test_a_run_that_was_stopped_goes_on_bit_for_bit(small, tmp_path):
    pretrain(small)
    copied = replace(small, output_dir=str(tmp_path / "copied"))
    shutil.copytree(small.output_dir, copied.output_dir)
    shutil.rmtree(tmp_path / "copied" / "checkpoints" / "step-00000006")
    (tmp_path / "copied" / "model.safetensors").unlink()
    pretrain(copied)
    elsewhere = replace(small, output_dir=str(tmp_path / "elsewhere"),
                        resume=f"{small.output_dir}/checkpoints/step-00000003")  # fmt: skip
    pretrain(elsewhere)
    pretrain(replace(elsewhere, resume="auto", max_steps=7))
    expected = load_file(f"{elsewhere.output_dir}/checkpoints/step-00000006/model.safetensors")
    for name, tensor in weights(small).items():
        assert torch.equal(tensor, weights(copied)[name])
        assert torch.equal(tensor, expected[name.replace(".", "/")])
    assert losses(small) == losses(copied)
    other = replace(small, output_dir=str(tmp_path / "other"), seed=1)
    pretrain(other)
    assert not torch.equal(weights(small)["encoder.tokens.weight"], weights(other)["encoder.tokens.weight"])
    with pytest.raises(InputError, match=r"from a run with seed 0 \(now 1\): give the same flags"):
        pretrain(replace(small, seed=1))


def test_other_texts_under_the_same_name_are_told(small, tmp_path):
    pretrain(small)
    write_corpus(tmp_path, 121)
    with pytest.raises(InputError, match="is from a run on other data, by content hash: "):
        pretrain(small)
    pretrain(replace(small, resume="never"))


def test_ctrl_c_ends_between_two_steps(small, monkeypatch):
    whole = replace(small, output_dir=f"{small.output_dir}-whole")
    pretrain(whole)

    with monkeypatch.context() as patched:
        patched.setattr("moe_retrieval.training.example_steps.Interruption", pressed_at(2))
        with pytest.raises(KeyboardInterrupt):
            pretrain(small)
    assert len(losses(small)) == 2
    pretrain(small)
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(small).items())


def in_folder(folder):
    config = PretrainConfig(
        corpus=f"{folder}/../corpus.jsonl", output_dir=f"{folder}/run", hidden=24, num_layers=2, heads=2, ff=48,
        vocab_size=300, max_positions=32, length=24, max_steps=3, batch_size=15, dropout=0.0, precision="fp32",
    )  # fmt: skip
    return tuple(pretrain(config))


@pytest.mark.slow  # processes that import torch
def test_two_processes_are_one(tmp_path):
    """Batches of 15 are shared unevenly."""
    write_corpus(tmp_path)
    (alone,) = run_ranks(1, in_folder, tmp_path / "one")
    both = run_ranks(2, in_folder, tmp_path / "two")
    assert both[0] == pytest.approx(alone, rel=1e-5)
    one, two = (load_file(tmp_path / name / "run" / "model.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-4)


def test_an_encoder_that_others_trained_reads_the_corpus(small, tmp_path):
    save(tmp_path / "dense", tiny_retriever(), tiny_tokenizer(), "")
    config = replace(small, model=str(tmp_path / "dense"), lr=1e-3, max_steps=40, epochs=None, dropout=0.0)
    pretrain(config)
    assert sum(losses(config)[-5:]) < sum(losses(config)[:5])
    before = load_file(tmp_path / "dense" / "model.safetensors")
    assert before.keys() == weights(config).keys()
    assert not torch.equal(before["encoder.tokens.weight"], weights(config)["encoder.tokens.weight"])
    save(tmp_path / "experts", tiny_retriever("moe"), tiny_tokenizer(), "")
    with pytest.raises(InputError, match="is a run of variant moe: expected a dense one"):
        pretrain(replace(config, model=str(tmp_path / "experts"), output_dir=str(tmp_path / "x")))
    with pytest.raises(InputError, match="--length must be at most 32, the positions of "):
        pretrain(replace(config, length=33, output_dir=str(tmp_path / "y")))


def test_texts_that_are_held_out_are_others():
    trained, held_out = split_off(1000, 0)
    assert (len(trained), len(held_out)) == (950, 50)
    assert sorted({*trained, *held_out}) == list(range(1000))
    assert len(split_off(10**6, 0)[1]) == 500
    assert len(split_off(19, 0)[1]) == 0


def test_the_preset_is_that_of_training():
    given = parse(PretrainConfig, ["--preset", "from-scratch", "--num-layers", "2"], "pretrain", PRESETS)
    assert {name: getattr(given, name) for name in FROM_SCRATCH} == FROM_SCRATCH | {"num_layers": 2}


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--mask-share 0", "--mask-share is a share of the tokens, above 0 and below 1, got 0.0"),
        ("--mask-share nan", "--mask-share must be a finite number, got nan"),
        ("--length 600", "--length must be at most --max-positions, 512, got 600"),
        ("--model here --output-dir ./here", "--model here would be overwritten"),
        ("--corpus docs:2", "--corpus docs:2: weights are for train"),
        ("--vocab-size 10", "--vocab-size must be at least 300, got 10"),
        ("--tokenizer words", "invalid choice 'words' for argument '--tokenizer'"),
    ],
)
def test_what_makes_no_sense_is_one_line(flags, message):
    with pytest.raises(InputError, match=message) as caught:
        main(flags.split())
    assert "\n" not in str(caught.value)
