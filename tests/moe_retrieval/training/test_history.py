"""What is shown of a training: on a line and a bar, and in TensorBoard where that is installed."""

import io
import json
import re
import sys
import time
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from moe_retrieval import progress
from moe_retrieval.checksums import write_sealed
from moe_retrieval.train import train
from moe_retrieval.training import board, checkpoint, cost, loop
from moe_retrieval.training.history import History
from moe_retrieval.training.pace import Pace
from moe_retrieval.training.step import Batch
from tests.moe_retrieval.rare_words import FAST, write_collection
from tests.moe_retrieval.steps import ALONE


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_and_a_bar_have_loss_rate_tokens_and_experts(tmp_path, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # else the bar may be cut
    with History(tmp_path / "log.jsonl", 0, ALONE) as history:
        monkeypatch.setattr(sys, "stderr", Terminal())
        history.start_meter(4, 0)
        history.note_experts(1, {"block": [0.5, 0.25, 0.25]})
        time.sleep(0.15)  # tqdm draws at most every tenth of a second
        history.advance(1, 0.51234, 2.5e-5, 12345.6)
        shown = sys.stderr.getvalue()
    assert "training:  25%" in shown
    assert "loss=0.5123, lr=2.5e-05, tokens/s=12,346, experts=50/25/25%" in shown
    assert history.meter.line(2) == (
        "1 of 4 steps, loss 0.5123, lr 2.5e-05, tokens/s 12,346, experts 50/25/25%, 2.0 s each, 0:06 left"
    )


def test_tokens_a_second_are_those_of_all_texts_and_of_the_newest_steps_most():
    pace = Pace()
    batch = Batch([[1, 2], [3]], [[4, 5, 6], [7]], None)
    assert pace.after([batch, batch], 2.0) == 14 / 2
    assert pace.after([batch], 1.0) == pytest.approx((0.9 * 14 + 7) / (0.9 * 2 + 1))


class Writer:
    """In the place of torch's SummaryWriter."""

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.drawn, self.is_open = folder, purge_step, {}, True
        Writer.made.append(self)

    def add_scalar(self, name, value, step):
        assert self.is_open
        assert isinstance(value, int | float), "torch's refuses what is no number"
        self.drawn.setdefault(name, []).append((step, value))

    def close(self):
        self.is_open = False


@pytest.fixture
def tensorboard(monkeypatch):
    """As if it were installed."""
    Writer.made = []
    package, writers = ModuleType("tensorboard"), ModuleType("torch.utils.tensorboard")
    package.__spec__, writers.SummaryWriter = ModuleSpec("tensorboard", None), Writer
    monkeypatch.setitem(sys.modules, "tensorboard", package)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", writers)
    return Writer.made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_collection(tmp_path_factory.mktemp("collection"))


def short(folder, tmp_path, **options):
    return type(FAST)(**{**vars(FAST), "dataset": str(folder), "output_dir": str(tmp_path / "run"), **options})


def test_tensorboard_has_the_curves_of_the_log(folder, tmp_path, tensorboard, monkeypatch):
    monkeypatch.setattr(loop, "LOOK_EVERY", 2)
    train(short(folder, tmp_path, max_steps=4))
    train(short(folder, tmp_path, max_steps=6))
    first, second = tensorboard
    assert first.folder == second.folder == str(tmp_path / "run" / "tensorboard")
    assert (first.purge_step, second.purge_step) == (0, 5)
    assert not first.is_open
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for name in ("loss", "gradient_norm", "ndcg_at_10"):
        logged = [(event["step"], event[name]) for event in events if name in event]
        assert first.drawn.get(name, []) + second.drawn.get(name, []) == logged
    assert (
        [step for step, _ in first.drawn["lr"]] == [step for step, _ in first.drawn["tokens_a_second"]] == [1, 2, 3, 4]
    )
    assert first.drawn["lr"][0][1] == pytest.approx(3e-3)
    shares = [values for name, values in first.drawn.items() if re.fullmatch(r"block/\d", name)]
    assert [sum(value for _, value in at) for at in zip(*shares)] == pytest.approx([1, 1], abs=0.01)
    assert "time" not in first.drawn


def test_tensorboard_has_a_curve_for_each_data_set(tmp_path, tensorboard):
    with History(tmp_path / "log.jsonl", 0, ALONE) as history:
        history.write(step=4, ndcg_at_10=0.4, by_dataset={"docs": 0.5, "scifact": 0.3})
    (writer,) = tensorboard
    assert writer.drawn == {
        "ndcg_at_10": [(4, 0.4)], "by_dataset/docs": [(4, 0.5)], "by_dataset/scifact": [(4, 0.3)]
    }  # fmt: skip


def test_without_tensorboard_there_is_nothing_of_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr(board.importlib.util, "find_spec", lambda name: None)
    with History(tmp_path / "log.jsonl", 0, ALONE) as history:
        history.write(step=1, loss=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_tensorboard_that_torch_cannot_use_is_none(tmp_path, tensorboard, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # importing it raises ImportError
    with History(tmp_path / "log.jsonl", 0, ALONE) as history:
        history.write(step=1, loss=0.5)
    assert tensorboard == []


def test_what_a_run_costs_is_kept_with_its_progress(folder, tmp_path, monkeypatch):
    """Over two sessions; the time between them is not counted, nor what came before the first step."""
    now = [1000.0]
    monkeypatch.setattr(cost, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(cost, "peak_memory", lambda device: int(now[0]))
    step = loop.Step.__call__

    def slow(self, batches):
        now[0] += 2.0
        return step(self, batches)

    monkeypatch.setattr(loop.Step, "__call__", slow)

    def kept(steps):
        train(short(folder, tmp_path, max_steps=steps))
        progress = checkpoint.read_state(tmp_path / "run" / "checkpoints" / f"step-{steps:08d}")["progress"]
        return progress["seconds"], progress["peak_memory"]

    assert kept(4) == (8.0, 1008)
    now[0] = 500.0  # of another process
    assert kept(6) == (12.0, 1008)


def test_a_run_that_an_older_version_began_does_not_say_how_long_it_took(folder, tmp_path):
    train(short(folder, tmp_path, max_steps=2))
    kept = tmp_path / "run" / "checkpoints" / "step-00000002"
    state = checkpoint.read_state(kept)
    del state["progress"]["seconds"], state["progress"]["peak_memory"]
    write_sealed(kept / "state.json", state)
    train(short(folder, tmp_path, max_steps=4))
    progress = checkpoint.read_state(kept.with_name("step-00000004"))["progress"]
    assert progress["seconds"] == 0
    assert progress["peak_memory"] > 0


@pytest.mark.skipif(not cost.STATUS.exists(), reason="there is no /proc")
def test_the_peak_grows_with_what_is_held():
    held = next(int(line.split()[1]) for line in cost.STATUS.read_text().splitlines() if line.startswith("VmRSS:"))
    before = cost.peak_memory(ALONE.device)
    more = 2**26
    block = np.ones(before - 1024 * held + more, dtype=np.int8)
    assert 0.9 * more < cost.peak_memory(ALONE.device) - before < 1.2 * more
    assert block.all()


def test_a_line_of_training_says_what_the_log_says(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.001)
    monkeypatch.setattr(loop, "LOOK_EVERY", 2)
    train(short(folder, tmp_path, max_steps=4, num_experts=3))
    lines = [
        line for line in capsys.readouterr().err.splitlines() if re.match(r"training: [2-4] of 4 steps, loss", line)
    ]
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = {event["step"]: f"{event['loss']:.4f}" for event in events if "loss" in event}
    assert lines
    for line in lines:
        found = re.fullmatch(
            r"training: (\d) of 4 steps, loss (\S+), lr \d\.\de-\d\d, tokens/s [\d,]+, experts \d+/\d+/\d+%, .* left",
            line,
        )
        assert found, line
        assert losses[int(found[1])] == found[2]
