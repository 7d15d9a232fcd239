"""What "auto" computes in: bf16 where the backend that runs is faster in it."""

from dataclasses import replace

import pytest
import torch
import yaml

import moe_retrieval
from kernels import dispatch, reference
from kernels.cpu import levels
from kernels.cpu.levels import LEVELS, Machine
from moe_retrieval.config import TrainConfig
from moe_retrieval.errors import InputError
from moe_retrieval.models import export
from moe_retrieval.models.precision import resolve
from moe_retrieval.train import train
from tests.moe_retrieval.rare_words import SCRATCH, write_collection
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer

CPU = torch.device("cpu")


@pytest.mark.parametrize("prefers, expected", [(True, "bf16"), (False, "fp32")])
def test_auto_is_what_the_backend_prefers(monkeypatch, prefers, expected, tmp_path):
    monkeypatch.setattr(dispatch.pick(CPU, torch.float32), "prefers_bf16", lambda device: prefers)
    assert resolve("auto", CPU) == expected
    export.save(tmp_path, tiny_retriever(), tiny_tokenizer(), "card")
    assert moe_retrieval.load(tmp_path, device="cpu").precision == expected
    assert moe_retrieval.load(tmp_path, "fp16", "cpu").precision == "fp16"


@pytest.mark.parametrize("flags, expected", [("avx512_bf16", True), ("avx2", False), ("portable", False)])
def test_pytorch_is_faster_in_bf16_where_a_cpu_multiplies_it(monkeypatch, flags, expected):
    machine = Machine("Another", 1, 1, LEVELS[flags].flags)
    monkeypatch.setattr(Machine, "read", lambda: machine)
    levels.multiplies_bf16.cache_clear()
    try:
        assert reference.prefers_bf16(CPU) is expected
    finally:
        levels.multiplies_bf16.cache_clear()


@pytest.mark.parametrize("capability, expected", [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_needs_tensor_cores_of_bf16(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert reference.prefers_bf16(torch.device("cuda")) is expected
    assert reference.prefers_bf16(torch.device("mps")) is False


def test_other_names_are_refused():
    with pytest.raises(InputError, match="precision must be one of auto, bf16, fp16, fp32; got 'half'"):
        resolve("half", CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a run would be on the GPU")
def test_a_run_keeps_what_auto_was_when_it_began(tmp_path, monkeypatch):
    config = TrainConfig(
        **SCRATCH, max_steps=1, batch_size=8, eval_every=0, no_eval=True, output_dir=str(tmp_path / "run"),
        dataset=str(write_collection(tmp_path / "a collection")),
    )  # fmt: skip
    assert config.precision == "auto"
    for prefers, steps in ((False, 1), (True, 2)):  # as if it went on on another machine
        monkeypatch.setattr(dispatch.get("eager"), "prefers_bf16", lambda device, prefers=prefers: prefers)
        train(replace(config, max_steps=steps))
        assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["precision"] == "fp32"
    train(replace(config, output_dir=str(tmp_path / "another run")))
    assert yaml.safe_load((tmp_path / "another run" / "config.yaml").read_text())["precision"] == "bf16"
