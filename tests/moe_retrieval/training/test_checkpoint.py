"""Checkpoints are whole or not there, and hold everything."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file

from moe_retrieval.errors import InputError
from moe_retrieval.training import checkpoint, rng
from moe_retrieval.training import optimizer as optimizers
from moe_retrieval.training.checkpoint import Progress, Trained
from moe_retrieval.training.distributed import World
from moe_retrieval.training.losses import Objective
from moe_retrieval.training.step import Step
from tests.moe_retrieval.steps import ALONE, make_batch
from tests.moe_retrieval.tiny import tiny_retriever


def make(seed=0, precision="fp16"):
    retriever = tiny_retriever("sb-moe", seed=seed, dropout=0.2).train()
    optimizer = optimizers.make_optimizer(retriever, 1e-3, 1e-2, 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**13, enabled=precision == "fp16")
    step = Step(retriever, retriever, Objective(), optimizer, scaler, ALONE.device, precision, clip=1.0)
    return Trained(retriever, optimizer, scaler), step


def advance(step, first, last):
    for number in range(first, last):
        step([make_batch(ALONE, number, 6, 1)])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_restored_run_goes_on_to_the_same_bits(precision, tmp_path):
    """Dropout and noise on: the random state is part of it. The second model starts as another one."""
    rng.seed(5, 0)
    trained, step = make(precision=precision)
    advance(step, 0, 3)
    progress = Progress(3, 0.123456789012345678, 2, 1)
    path = checkpoint.save(tmp_path, ALONE, trained, progress, {"lr": 0.1})
    advance(step, 3, 6)

    again, step = make(seed=1, precision=precision)
    advance(step, 0, 1)
    assert checkpoint.restore(path, ALONE, again) == (progress, True)
    advance(step, 3, 6)
    for name, tensor in trained.retriever.state_dict().items():
        assert torch.equal(again.retriever.state_dict()[name], tensor), name
    assert again.scaler.state_dict() == trained.scaler.state_dict()


def test_only_whole_checkpoints_are_found(tmp_path):
    trained, _ = make()
    assert checkpoint.find_all(tmp_path / "none") == []
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, ALONE, trained, Progress(step), {})
    assert [path.name for path in checkpoint.find_all(tmp_path)] == ["step-00000002", "step-00000010"]
    (tmp_path / ".step-00000011.draft").mkdir()
    (tmp_path / ".step-00000011.draft" / "state.json").write_text("{}")
    (tmp_path / "step-11").mkdir()
    assert [path.name for path in checkpoint.find_all(tmp_path)] == ["step-00000002", "step-00000010"]
    checkpoint.save(tmp_path, ALONE, trained, Progress(12), {})
    assert not list(tmp_path.glob(".*"))
    checkpoint.discard_all(tmp_path)
    assert checkpoint.find_all(tmp_path) == []


def stop(*arguments, **options):
    raise KeyboardInterrupt


def test_whatever_stops_a_save_leaves_the_one_before(tmp_path, monkeypatch):
    trained, _ = make()
    checkpoint.save(tmp_path, ALONE, trained, Progress(1), {})
    for place in ("to_safetensors", "write_sealed", "_optimizer_tensors", "_flush"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, place, stop)
            with pytest.raises(KeyboardInterrupt):
                checkpoint.save(tmp_path, ALONE, trained, Progress(2), {})
        assert [path.name for path in checkpoint.find_all(tmp_path)] == ["step-00000001"], place
    checkpoint.restore(tmp_path / "step-00000001", ALONE, trained)


def test_no_pickle_and_every_number_exact(tmp_path):
    trained, _ = make()
    path = checkpoint.save(tmp_path, ALONE, trained, Progress(7, 1 / 3), {"lr": 5e-5})
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    state = json.loads((path / "state.json").read_text())
    assert state["progress"]["best_score"] == 1 / 3
    assert state["config"] == {"lr": 5e-5}
    assert set(load_file(path / "model.safetensors")) == set(trained.retriever.state_dict())


def test_another_number_of_processes_is_told(tmp_path):
    trained, _ = make()
    path = checkpoint.save(tmp_path, ALONE, trained, Progress(7), {})
    assert checkpoint.restore(path, World(0, 2, ALONE.device), trained) == (Progress(7), False)


FILES = ("model.safetensors", "optimizer.safetensors", "rng-0.safetensors", "state.json")


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_or_a_missing_end_is_noticed_wherever_it_is(name, tmp_path):
    trained, step = make()
    advance(step, 0, 1)
    path = checkpoint.save(tmp_path, ALONE, trained, Progress(7, 0.25), {"lr": 0.1})
    checkpoint.check(path)
    whole = (path / name).read_bytes()
    places = random.Random(0).sample(range(len(whole)), 40)
    for damaged in (*(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in places), whole[:-2], whole[:99], b""):
        (path / name).write_bytes(damaged)
        with pytest.raises(InputError, match=f"{name}: ") as caught:
            checkpoint.check(path)
        assert "\n" not in str(caught.value)
    (path / name).unlink()
    with pytest.raises(InputError, match=f"{name}: No such file"):
        checkpoint.check(path)


def test_errors_are_one_line(tmp_path):
    trained, _ = make()
    path = checkpoint.save(tmp_path, ALONE, trained, Progress(7), {})
    other = Trained(tiny_retriever("dense"), trained.optimizer, trained.scaler)
    with pytest.raises(InputError, match="step-00000007 does not fit this run") as caught:
        checkpoint.restore(path, ALONE, other)
    assert "\n" not in str(caught.value)
    (path / "state.json").write_text("{")
    with pytest.raises(InputError, match="step-00000007 is no checkpoint"):
        checkpoint.restore(path, ALONE, trained)


def test_a_run_that_went_back_replaces_what_lay_ahead_of_it(tmp_path):
    """From step 1 again, where 2 and 9 exist: 2 is written anew, and 9 is of the course that was left."""
    trained, _ = make()
    for step in (1, 2):
        checkpoint.save(tmp_path, ALONE, trained, Progress(step), {"course": "first"})
    shutil.copytree(tmp_path / "step-00000002", tmp_path / "step-00000009")
    for folder in (tmp_path, tmp_path / "sub" / ".."):
        (tmp_path / "sub").mkdir(exist_ok=True)
        saved = checkpoint.save(folder, ALONE, trained, Progress(2), {"course": "second"})
        assert checkpoint.read_state(saved)["config"] == {"course": "second"}
        assert [path.name for path in checkpoint.find_all(tmp_path)] == ["step-00000001", "step-00000002"]
        assert not list(tmp_path.glob(".*"))
    checkpoint.restore(saved, ALONE, trained)


def test_a_save_of_the_same_step_that_is_stopped_leaves_one_of_them(tmp_path, monkeypatch):
    trained, _ = make()
    checkpoint.save(tmp_path, ALONE, trained, Progress(1), {})
    checkpoint.save(tmp_path, ALONE, trained, Progress(2), {})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, ALONE, trained, Progress(2), {})
    newest = checkpoint.find_all(tmp_path)[-1]
    assert newest.name == "step-00000002"
    checkpoint.restore(newest, ALONE, trained)
