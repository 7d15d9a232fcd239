"""Training a reranker: what it learns, that a run that was stopped goes on bit for bit, and what it refuses."""

import json
import math
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.examples import Example, Passage
from moe_retrieval.genpoe.groups import Group, Groups, group_of, write_groups
from moe_retrieval.genpoe.prepare import main as prepare
from moe_retrieval.genpoe.prompts import PROMPTS
from moe_retrieval.genpoe.reranker import load_reranker
from moe_retrieval.genpoe.reranker_config import TrainRerankerConfig
from moe_retrieval.genpoe.reranker_training import drawn
from moe_retrieval.genpoe.train_reranker import main
from moe_retrieval.training.flags import count_steps
from tests.moe_retrieval.corpora import write_lines
from tests.moe_retrieval.genpoe.yes_no import write_decoder

NAMES = ["Ann", "Bob", "Cid", "Dot", "Eve", "Fay", "Gus", "Hal"]
TOWNS = ["Elgin", "Kelso", "Oakham", "Jarrow", "Ludlow", "Hexham", "Carlow", "Penrith"]
PETS = ["horse", "cat", "duck", "goat", "camel", "parrot", "rabbit", "pony"]
PASSAGES = [f"{name} lives in {town}." for name, town in zip(NAMES, TOWNS)]


def group(place):
    others = [text for other, text in enumerate(PASSAGES) if other != place]
    return Group(f"Where does {NAMES[place]} live?", [PASSAGES[place]], others, PROMPTS["passage"])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("rerankers")
    write_groups(home / "groups.jsonl", map(group, range(8)))
    write_decoder(home / "gpt2", "gpt2", [*PASSAGES, *(group(place).query for place in range(8))])
    return home


def train(home, output, *flags):
    main(["--model", str(home / "gpt2"), "--data", str(home / "groups.jsonl"), "--output-dir", str(output),
          "--precision", "fp32", "--group-size", "4", "--batch-size", "4", "--max-length", "128",
          "--chunk-size", "0", *map(str, flags)])  # fmt: skip
    return load_file(output / "model.safetensors")


def losses(output):
    return [json.loads(line)["loss"] for line in (output / "log.jsonl").read_text().splitlines()]


def test_it_learns_what_passages_that_answer_have_in_common(home, tmp_path):
    """Of people whom it has not seen: where they live is asked, and what they keep is told, too."""
    told = [[f"{name} lives in {town}.", f"{name} keeps a {pet}."] for name in NAMES for town, pet in zip(TOWNS, PETS)]
    groups = [Group("Where do they live?", text[:1], text[1:], PROMPTS["passage"]) for text in told]
    write_groups(tmp_path / "groups.jsonl", groups[: 4 * len(TOWNS)])
    shutil.copytree(home / "gpt2", tmp_path / "gpt2")
    train(tmp_path, tmp_path / "r", "--max-steps", "30", "--lr", "1e-2", "--group-size", "2")
    assert losses(tmp_path / "r")[0] == pytest.approx(math.log(2), abs=0.1)  # either
    reranker = load_reranker(str(tmp_path / "r"), torch.device("cpu"))
    unseen = groups[4 * len(TOWNS) :]
    scores = [reranker.score(group.query, [*group.pos, *group.neg], 10_000) for group in unseen]
    assert sum(right > wrong for right, wrong in scores) > 0.9 * len(unseen)


def without_dropout(home, folder):
    """Another such home, whose model computes the same each time."""
    shutil.copytree(home / "gpt2", folder / "gpt2")
    config = json.loads((home / "gpt2" / "config.json").read_text())
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    (folder / "gpt2" / "config.json").write_text(json.dumps(config | off))
    shutil.copy(home / "groups.jsonl", folder)
    return folder


@pytest.mark.parametrize("flags", [["--against-no"], []], ids=["against no", "yes alone"])
def test_the_first_loss_is_the_cross_entropy_of_the_scores(home, tmp_path, flags):
    """Computed anew from the scores that the model had before."""
    train(without_dropout(home, tmp_path), tmp_path / "r", "--max-steps", "1", "--lr", "0", "--batch-size", "8", *flags)
    reranker = load_reranker(str(tmp_path / "gpt2"), torch.device("cpu"), against_no=bool(flags), max_length=128)
    settings = TrainRerankerConfig(model="m", data="d", output_dir="o", group_size=4)
    each = []
    for place, one in enumerate(Groups(home / "groups.jsonl")):
        query, texts = drawn(one, settings, 0, place)
        scores = torch.tensor(reranker.score(query, texts, 10_000))
        each.append((scores.logsumexp(0) - scores[0]).item())
    assert losses(tmp_path / "r") == pytest.approx([sum(each) / 8], abs=1e-4)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(home, tmp_path):
    """Dropout included: the random state comes back too."""
    flags = ["--max-steps", "6", "--save-every", "3"]
    whole = train(home, tmp_path / "a", *flags)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "step-00000006")
    (tmp_path / "b" / "model.safetensors").unlink()
    again = train(home, tmp_path / "b", *flags)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    other = train(home, tmp_path / "c", *flags, "--seed", "1")
    assert any(not torch.equal(whole[name], other[name]) for name in whole)
    with pytest.raises(InputError, match=r"from a run with seed 0 \(now 1\): give the same flags"):
        train(home, tmp_path / "b", *flags, "--seed", "1")


@pytest.mark.parametrize("flags", [["--chunk-size", "1"], ["--gradient-checkpointing"]], ids=["chunks", "recomputed"])
def test_what_saves_memory_changes_nothing_else(home, tmp_path, flags):
    """But for the last bits."""
    without_dropout(home, tmp_path)
    plain = train(tmp_path, tmp_path / "a", "--max-steps", "2")
    saving = train(tmp_path, tmp_path / "b", "--max-steps", "2", *flags)
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), abs=1e-5)
    for name in plain:
        torch.testing.assert_close(plain[name], saving[name], atol=5e-4, rtol=0)


def test_each_epoch_draws_anew_and_few_negatives_come_again():
    settings = TrainRerankerConfig(model="m", data="d", output_dir="o", group_size=4)
    many = Group("q", ["p", "r"], [f"n{i}" for i in range(20)], "")
    draws = {tuple(drawn(many, settings, epoch, 3)[1]) for epoch in range(20)}
    assert len(draws) == 20
    assert {draw[0] for draw in draws} == {"p", "r"}
    assert all(len(set(draw)) == 4 and set(draw[1:]) < set(many.neg) for draw in draws)
    assert drawn(many, settings, 0, 3) == drawn(many, settings, 0, 3)
    query, texts = drawn(many._replace(neg=["a", "b"]), settings, 0, 0)
    assert (query, len(texts), set(texts[1:])) == ("q", 4, {"a", "b"})


def test_steps_are_those_of_the_epochs():
    def steps(**options):
        return count_steps(TrainRerankerConfig(model="m", data="d", output_dir="o", **options), 10)

    assert [steps(), steps(epochs=3), steps(max_steps=25), steps(epochs=3, max_steps=25)] == [10, 30, 25, 25]


def passages(*texts):
    return tuple(Passage(str(place), text.split()[0], text) for place, text in enumerate(texts))


def test_groups_are_of_what_was_retrieved_and_of_what_the_data_names():
    example = Example("q", ("Elgin",), passages("T1 in Elgin", "T2 none", "T1 other", "T2 none"),
                      passages("T3 Elgin"), passages("T4 hard"))  # fmt: skip
    assert group_of(example, "passage") == Group(
        "q", ["T3 T3 Elgin", "T1 T1 in Elgin"], ["T2 T2 none", "T1 T1 other", "T4 T4 hard"], PROMPTS["passage"]
    )
    assert group_of(example, "passage", 1).neg == ["T2 T2 none"]
    assert group_of(example, "title") == Group("q", ["T3", "T1"], ["T2", "T4"], PROMPTS["title"])


def test_the_command_prepare_writes_lines_and_leaves_out_what_teaches_nothing(tmp_path, capsys):
    records = [
        {"question": "a", "answers": ["x"], "ctxs": [{"title": "T", "text": "x"}, {"title": "U", "text": "y"}]},
        {"question": "b", "answers": ["x"], "ctxs": [{"title": "T", "text": "x"}]},
        {"question": "c", "answers": ["x"], "ctxs": [{"title": "T", "text": "z", "has_answer": False}]},
    ]
    (tmp_path / "in.json").write_text(json.dumps(records))
    prepare(["--input", str(tmp_path / "in.json"), "--output", str(tmp_path / "out.jsonl")])
    (line,) = (tmp_path / "out.jsonl").read_text().splitlines()
    assert json.loads(line) == {"query": "a", "pos": ["T x"], "neg": ["U y"], "prompt": PROMPTS["passage"]}
    assert capsys.readouterr().out.startswith(f"1 questions in {tmp_path}/out.jsonl; 2 left out")
    (tmp_path / "in.json").write_text(json.dumps(records[1:]))
    with pytest.raises(InputError, match="none of 2 questions has passages with an answer and others without"):
        prepare(["--input", str(tmp_path / "in.json"), "--output", str(tmp_path / "out.jsonl")])
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 1


GOOD = {"query": "q", "pos": ["p"], "neg": ["n"], "prompt": "x"}
BAD = [
    ({"pos": []}, r'g\.jsonl:2: expected "pos" that is a list of at least one text, got \[\]'),
    ({"neg": [1]}, r'g\.jsonl:2: expected "neg" that is a list of at least one text'),
    ({"query": None}, r'g\.jsonl:2: expected a "query" that is a string'),
    ({"prompt": "y"}, r"g\.jsonl:2: expected the prompt of the lines before, got 'y'"),
]


@pytest.mark.parametrize("change, message", BAD)
def test_a_bad_line_of_groups_is_refused(tmp_path, change, message):
    write_lines(tmp_path / "g.jsonl", [GOOD, GOOD | change])
    with pytest.raises(InputError, match=message):
        Groups(tmp_path / "g.jsonl")


def test_an_empty_file_of_groups_is_refused(tmp_path):
    (tmp_path / "g.jsonl").touch()
    with pytest.raises(InputError, match=r"g\.jsonl: holds no question"):
        Groups(tmp_path / "g.jsonl")


def test_lora_without_peft_is_one_line(home, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"--lora-rank needs peft: pip install 'moe-retrieval\[lora\]'"):
        train(home, tmp_path / "r", "--lora-rank", "8")


def test_lora_learns_few_parameters_and_leaves_whole_weights(home, tmp_path, capsys):
    pytest.importorskip("peft")
    train(home, tmp_path / "r", "--lora-rank", "2", "--max-steps", "3", "--lr", "1e-2")
    whole = load_reranker(str(home / "gpt2"), torch.device("cpu"), max_length=128)
    trained = load_reranker(str(tmp_path / "r"), torch.device("cpu"))
    assert trained.score("q", PASSAGES, 1000) != pytest.approx(whole.score("q", PASSAGES, 1000), abs=1e-4)
    assert " 512 parameters learn" in capsys.readouterr().out


def test_a_gradient_that_is_no_number_is_told(home, tmp_path, monkeypatch):
    """Such a step changes nothing: a run of them would end as if it had trained."""
    monkeypatch.setattr("moe_retrieval.training.example_steps.update", lambda *arguments: torch.tensor(math.inf))
    with pytest.raises(InputError, match="the gradient's norm is inf: lower --lr, or use --precision fp32"):
        train(home, tmp_path / "r", "--max-steps", "2")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--lora-alpha", "8"], "--lora-alpha goes with --lora-rank, which is 0"),
        (["--group-size", "1"], "--group-size must be at least 2, got 1"),
        (["--warmup", "2"], "--warmup is a share of the steps, 0 to 1, got 2.0"),
        (["--lr", "nan"], "--lr must be a finite number, got nan"),
    ],
)
def test_flags_that_make_no_sense_are_told(home, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        train(home, tmp_path / "r", *flags)


def test_the_weights_it_begins_with_are_not_lost(home, tmp_path):
    shutil.copytree(home / "gpt2", tmp_path / "gpt2")
    before = (tmp_path / "gpt2" / "model.safetensors").read_bytes()
    shutil.copy(home / "groups.jsonl", tmp_path)
    with pytest.raises(InputError, match=r"--model .*gpt2 would be overwritten: give another --output-dir"):
        train(tmp_path, tmp_path / "x" / ".." / "gpt2", "--max-steps", "1")
    assert (tmp_path / "gpt2" / "model.safetensors").read_bytes() == before


def test_several_processes_are_refused(home, tmp_path, monkeypatch):
    monkeypatch.setattr("moe_retrieval.training.distributed._own_rank", lambda: (0, 2))
    with pytest.raises(InputError, match="a reranker is trained by one process, got 2: start it without torchrun"):
        train(home, tmp_path / "r")
