"""What steps computed is read in order, on a GPU a step later; a run that reads late is the same run."""

import json
import math
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moe_retrieval.train import train
from moe_retrieval.training import loop
from moe_retrieval.training.distributed import World
from moe_retrieval.training.history import History
from moe_retrieval.training.readings import Readings
from tests.moe_retrieval.rare_words import FAST, write_collection
from tests.moe_retrieval.steps import ALONE


def scalars(*values):
    return [torch.tensor(value) for value in values]


def test_a_cpu_has_them_at_once():
    readings = Readings(ALONE)
    for step in (1, 2):
        readings.add(step, scalars(0.5 * step, 3.0))
        assert list(readings.read()) == [(step, [0.5 * step, 3.0])]
    assert list(readings.read(everything=True)) == []


def test_a_gpu_leaves_the_newest_out():
    readings = Late(ALONE)
    readings.add(1, scalars(1.0))
    assert list(readings.read()) == []
    readings.add(2, scalars(2.0))
    assert list(readings.read()) == [(1, [1.0])]
    readings.add(3, scalars(3.0))
    assert list(readings.read(everything=True)) == [(2, [2.0]), (3, [3.0])]
    assert list(readings.read(everything=True)) == []


def test_a_gpu_is_late_and_a_cpu_is_not():
    assert Readings(World(0, 1, torch.device("cuda"))).lag == 1
    assert Readings(ALONE).lag == 0


class Late(Readings):
    """As on a GPU."""

    def __init__(self, world):
        super().__init__(world)
        self.lag = 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_collection(tmp_path_factory.mktemp("collection"))


@pytest.fixture
def fast(folder, tmp_path):
    return replace(FAST, dataset=str(folder), output_dir=str(tmp_path / "run"))


def events(config):
    lines = Path(config.output_dir, "log.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "time"} for line in lines]


FILES = ("model.safetensors", "checkpoints/step-00000012/optimizer.safetensors")


@pytest.mark.parametrize("options", [{}, dict(eval_every=5, save_every=4), dict(max_steps=41, eval_every=0)], ids=str)
def test_a_run_that_reads_late_is_the_same_run(options, fast, monkeypatch):
    """The same log, line by line, and the same bits: also where it is validated, saved, or its gate looked at."""
    config = replace(fast, **options)
    late = replace(config, output_dir=config.output_dir + "-late")
    train(config)
    monkeypatch.setattr(loop, "Readings", Late)
    train(late)
    assert events(late) == events(config)
    assert [event["step"] for event in events(late) if "loss" in event] == list(range(1, config.max_steps + 1))
    newest = f"checkpoints/step-{config.max_steps:08}/optimizer.safetensors"
    for name in ("model.safetensors", newest):
        assert Path(late.output_dir, name).read_bytes() == Path(config.output_dir, name).read_bytes()


def test_a_late_run_that_is_stopped_goes_on_to_the_same_bits(fast, capsys, monkeypatch):
    """It stops a step later, having read all that it computed."""
    untouched, config = replace(fast, output_dir=fast.output_dir + "-untouched"), replace(fast, save_every=0)
    train(untouched)
    write = History.write

    def press(history, **event):
        write(history, **event)
        if event["step"] == 3 and "loss" in event:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "Readings", Late)
        patch.setattr(History, "write", press)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    # pressed after step 4, told to all ranks by step 5, which is read after step 6
    assert "saved at step 6; the same command goes on" in capsys.readouterr().out
    assert [event["step"] for event in events(config) if "loss" in event] == [1, 2, 3, 4, 5, 6]
    train(config)
    for name in FILES:
        assert Path(config.output_dir, name).read_bytes() == Path(untouched.output_dir, name).read_bytes()


@pytest.mark.parametrize("readings", [Readings, Late])
def test_a_loss_that_is_no_number_is_of_the_step_that_had_it(readings, fast, capsys, monkeypatch):
    step, steps = loop.Step.__call__, []

    def broken(self, batches):
        steps.append(step(self, batches))
        return steps[-1]._replace(loss=torch.tensor(math.nan)) if len(steps) >= 5 else steps[-1]

    monkeypatch.setattr(loop, "Readings", readings)
    monkeypatch.setattr(loop.Step, "__call__", broken)
    train(replace(fast, eval_every=0))
    said = capsys.readouterr().out
    assert "instability: step 5 has loss nan" in said
    assert "not finite since step 5: those steps were skipped" in said
