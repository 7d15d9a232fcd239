"""Training a hypernetwork: what it learns, that a run that was stopped goes on bit for bit, and what it refuses."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.examples import Example, write_examples
from moe_retrieval.genpoe.reader import Asked
from moe_retrieval.genpoe.reader_files import load_reader
from moe_retrieval.genpoe.reader_training import Objective, drawn, read_training, recompute_blocks
from moe_retrieval.genpoe.train import main
from moe_retrieval.genpoe.train_config import PRESETS, TrainConfig
from tests.moe_retrieval.genpoe.people import CPU, NAMES, PASSAGES, QUESTIONS, TOWNS, example, reader_at, write_home
from tests.moe_retrieval.interruptions import pressed_at
from tests.moe_retrieval.ranks import run_ranks

FLAGS = ("--precision", "fp32", "--rank", "4", "--bottleneck", "16", "--batch-size", "4")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def home(request, tmp_path_factory):
    return write_home(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_home(tmp_path_factory.mktemp("llama"))


def train(home, output, *flags):
    main(["--model", str(home / "decoder"), "--data", str(home / "train.json"), "--output-dir", str(output),
          *FLAGS, *map(str, flags)])  # fmt: skip
    return load_file(output / "experts.safetensors")


def losses(output):
    return [json.loads(line)["loss"] for line in (output / "log.jsonl").read_text().splitlines()]


def test_it_learns_to_say_what_a_passage_tells(home, tmp_path):
    """And the language model is as it was."""
    before = (home / "decoder" / "model.safetensors").read_bytes()
    train(home, tmp_path / "r", "--max-steps", "30", "--lr", "3e-2", "--batch-size", "6", "--warmup", "0")
    assert losses(tmp_path / "r")[-1] < 0.3 * losses(tmp_path / "r")[0]  # its logits are bounded
    reader = load_reader(tmp_path / "r", CPU, "fp32")
    asked = [Asked(reader.wording.asked(question), PASSAGES[row : row + 1]) for row, question in enumerate(QUESTIONS)]
    assert reader.answer(asked, reader.experts(PASSAGES), 8) == TOWNS
    wrong = [*PASSAGES[1:], PASSAGES[0]]
    others = [each._replace(passages=[passage]) for each, passage in zip(asked, wrong)]
    found = reader.answer(others, reader.experts(wrong), 8)
    assert sum(one == other for one, other in zip(found, TOWNS)) < 6
    assert (home / "decoder" / "model.safetensors").read_bytes() == before
    assert {path.name for path in (tmp_path / "r").iterdir()} >= {"experts.json", "experts.safetensors", "log.jsonl"}
    assert "model.safetensors" not in {path.name for path in (tmp_path / "r").iterdir()}


def test_the_first_loss_is_near_that_of_the_language_model_alone(home, tmp_path):
    """On answer tokens alone, computed here from the model as transformers loads it."""
    train(home, tmp_path / "r", "--max-steps", "1", "--batch-size", "6")
    model = transformers.AutoModelForCausalLM.from_pretrained(home / "decoder").eval()
    reader = reader_at(home)
    total = 0.0
    for question, town in zip(QUESTIONS, TOWNS):
        prompt, answer = reader.wording.answered(question, town)
        ids = torch.tensor([[*prompt.ids, *answer]])
        labels = ids.clone()
        labels[0, : len(prompt.ids)] = -100
        with torch.no_grad():
            total += model(input_ids=ids, labels=labels).loss.item()
    assert losses(tmp_path / "r") == pytest.approx([total / 6], rel=0.02)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(home, tmp_path):
    flags = ["--max-steps", "6", "--save-every", "3", "--passages", "3", "--fewer"]
    whole = train(home, tmp_path / "a", *flags)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "step-00000006")
    (tmp_path / "b" / "experts.safetensors").unlink()
    again = train(home, tmp_path / "b", *flags)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    other = train(home, tmp_path / "c", *flags, "--seed", "1")
    assert any(not torch.equal(whole[name], other[name]) for name in whole)
    with pytest.raises(InputError, match=r"from a run with seed 0 \(now 1\): give the same flags"):
        train(home, tmp_path / "b", *flags, "--seed", "1")


def test_a_ctrl_c_ends_between_two_steps_and_the_run_goes_on_from_there(llama, tmp_path, monkeypatch):
    flags = ["--max-steps", "4", "--save-every", "0"]
    whole = train(llama, tmp_path / "a", *flags)

    with monkeypatch.context() as patch:
        patch.setattr("moe_retrieval.training.example_steps.Interruption", pressed_at(2))
        with pytest.raises(KeyboardInterrupt):
            train(llama, tmp_path / "b", *flags)
    assert [path.name for path in (tmp_path / "b" / "checkpoints").iterdir()] == ["step-00000002"]
    assert not (tmp_path / "b" / "experts.safetensors").exists()
    again = train(llama, tmp_path / "b", *flags)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_the_same_in_fp32(home, tmp_path, precision):
    """The language model is in 16 bits and what learns in 32."""
    shared = ["--max-steps", "8", "--lr", "1e-2", "--batch-size", "6"]
    train(home, tmp_path / "a", *shared)
    half = train(home, tmp_path / "b", *shared, "--precision", precision)
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=0.1)
    assert losses(tmp_path / "b")[-1] < 0.8 * losses(tmp_path / "b")[0]


def test_blocks_are_recomputed_and_nothing_drops_out(llama):
    """transformers recomputes in training alone, and in training a block drops."""
    model = transformers.AutoModelForCausalLM.from_pretrained(llama / "decoder", attention_dropout=0.5).eval()
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        expected = model(ids).logits
    recompute_blocks(model)
    runs = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    found = model(ids, use_cache=False).logits
    assert torch.equal(found, expected)
    found.sum().backward()
    assert len(runs) == 2


@pytest.mark.parametrize("flags", [["--chunk-size", "1"], ["--gradient-checkpointing"]], ids=["chunks", "recomputed"])
def test_what_saves_memory_changes_nothing_else(home, tmp_path, flags):
    """But for the last bits."""
    shared = ["--max-steps", "3", "--passages", "2", "--in-prompt", "1", "--layers", "0,1", "--lr", "1e-3"]
    plain, saving = train(home, tmp_path / "a", *shared), train(home, tmp_path / "b", *shared, *flags)
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), abs=1e-5)
    for name in plain:
        torch.testing.assert_close(plain[name], saving[name], atol=1e-4, rtol=1e-3)


def in_folder(folder):
    """Of the last batch, the second rank has no question."""
    from pathlib import Path

    output, home = Path(folder), Path(folder).parent / "home"
    main(["--model", str(home / "decoder"), "--data", str(home / "train.json"), "--output-dir", str(output), *FLAGS,
          "--batch-size", "5", "--epochs", "2", "--chunk-size", "2", "--lr", "1e-3"])  # fmt: skip
    return losses(output)


@pytest.mark.slow  # processes that import torch
def test_two_processes_are_one(tmp_path):
    (tmp_path / "home").mkdir()
    write_home(tmp_path / "home")
    (alone,) = run_ranks(1, in_folder, tmp_path / "one")
    both = run_ranks(2, in_folder, tmp_path / "two")
    assert both[0] == pytest.approx(alone, abs=1e-6)
    assert len(alone) == 4
    one, two = (load_file(tmp_path / name / "experts.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-4)


def test_no_question_is_a_zero_in_which_every_parameter_has_a_part(llama):
    reader = reader_at(llama)
    objective = Objective(reader)
    loss = objective([])
    loss.backward()
    assert loss.item() == 0
    assert all((parameter.grad == 0).all() for parameter in reader.networks.parameters())


def settings(**flags):
    return TrainConfig(model="m", data="d", output_dir="o", **flags)


def test_what_is_drawn_is_the_best_ranked_or_one_that_answers_and_others(llama):
    reader = reader_at(llama)
    ranked = Example("q", ("x",), ctxs=tuple(PASSAGES), positives=tuple(PASSAGES[5:]))
    assert list(drawn(reader, ranked, settings(passages=3), [0, 0]).passages) == PASSAGES[:3]
    counts = {len(drawn(reader, ranked, settings(passages=3, fewer=True), [0, row]).passages) for row in range(30)}
    assert counts == {1, 2, 3}
    given = Example("q", ("x", "y"), positives=tuple(PASSAGES[:2]), hard_negatives=tuple(PASSAGES[2:]))
    draws = [drawn(reader, given, settings(passages=3), [epoch, 0]) for epoch in range(40)]
    assert {each.passages[0] for each in draws} == set(PASSAGES[:2])
    assert {passage for each in draws for passage in each.passages[1:]} == set(PASSAGES[2:])
    assert {tuple(each.answer) for each in draws} == {tuple(reader.wording.answered("q", a)[1]) for a in "xy"}
    assert draws == [drawn(reader, given, settings(passages=3), [epoch, 0]) for epoch in range(40)]
    (both,) = {drawn(reader, ranked, settings(passages=3, in_prompt=2), [0, row]).prompt.start for row in range(3)}
    assert (
        reader.wording.tokenizer.decode(
            drawn(reader, ranked, settings(passages=3, in_prompt=2), [0, 0]).prompt.ids[:both]
        )
        == f"Knowledge:\n{PASSAGES[0].text}\n{PASSAGES[1].text}\n"
    )


def test_questions_without_passages_are_left_out(tmp_path, caplog):
    write_examples(tmp_path / "t.json", [example(0), Example("Who?", ("me",)), example(1, 3)])
    assert [each.question for each in read_training(str(tmp_path / "t.json"), 2)] == QUESTIONS[:2]
    assert "1 questions have no passages and are left out" in caplog.text
    write_examples(tmp_path / "t.json", [Example("Who?", ("me",))])
    with pytest.raises(InputError, match=r't\.json: none of 1 questions has passages, in "ctxs" or "positive_ctxs"'):
        read_training(str(tmp_path / "t.json"), 2)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--layers", "2"], "layer 2 does not exist: LlamaForCausalLM has the layers 0 to 1"),
        (["--layers", "1,1"], "--layers must name no layer twice, got '1,1'"),
        (["--in-prompt", "2"], "--in-prompt must be at most --passages, which is 1, got 2"),
        (["--lr", "nan"], "--lr must be a finite number, got nan"),
        (
            ["--lr", "1e30", "--max-steps", "9", "--clip", "0"],
            "the loss is (nan|inf): lower --lr, or use --precision fp32",
        ),
        (["--data", "/nowhere.json"], "/nowhere.json: No such file"),
        (["--model", "/nowhere"], "model: '/nowhere' is no directory"),
    ],
)
def test_what_makes_no_sense_is_told(llama, tmp_path, flags, message):
    with pytest.raises(InputError, match=message) as caught:
        train(llama, tmp_path / "r", *flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("answers", ["[]", '[""]'])
def test_an_empty_list_of_answers_is_told(llama, tmp_path, answers):
    (tmp_path / "t.json").write_text(f'[{{"question": "Who?", "answers": {answers}}}]')
    with pytest.raises(InputError, match=r't\.json:entry 1: expected "answers" with at least one that is not empty'):
        train(llama, tmp_path / "r", "--data", tmp_path / "t.json")


def test_passages_that_are_cut_are_told(llama, tmp_path, caplog):
    train(llama, tmp_path / "r", "--max-steps", "1", "--passage-length", "3")
    assert f"{len(NAMES)} passages are longer than --passage-length, and were cut" in caplog.text


def test_the_presets_say_what_the_paper_says():
    paper = PRESETS["paper"]({})
    assert (paper["layers"], paper["rank"], paper["bottleneck"]) == ("11", 512, 128)
    assert (paper["lr"], paper["schedule"]) == (1e-4, "cosine")
    for name, preset in PRESETS.items():
        values = {"model": "m", "data": "d", "output_dir": "o", **preset({})}
        assert TrainConfig(**values).rank == PRESETS[name]({})["rank"]
