"""A step of training asks a GPU for no number: it runs on tensors that have none, on the meta device.

There every way to look at a number raises: `.item()`, `.tolist()`, `.cpu()`, the truth of a tensor, a mask as an index.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import dispatch
from moe_retrieval.models import packed as packed_tokens
from moe_retrieval.models.packed import PackedTokens
from moe_retrieval.training import gradcache, step, targets
from moe_retrieval.training.distributed import World
from moe_retrieval.training.losses import LOSSES, Objective
from moe_retrieval.training.step import Batch, Step, step_if_finite
from tests.moe_retrieval.steps import ALONE, make_batch
from tests.moe_retrieval.tiny import tiny_retriever

NOWHERE = World(0, 1, torch.device("meta"))


class Optimizer:
    """In the place of a fused one, which does not take these tensors."""

    def __init__(self):
        self.found = []

    def step(self):
        self.found.append(self.found_inf)

    def zero_grad(self, set_to_none):
        pass


class Arrivals(TorchDispatchMode):
    """Counts what is copied from the host to the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        goes = function is torch.ops.aten._to_copy.default and options.get("device") == NOWHERE.device
        self.count += goes and arguments[0].device.type == "cpu"
        return function(*arguments, **options)


@pytest.fixture(params=["eager", "triton"])
def on_a_device(request, monkeypatch):
    """A backend that takes tensors which are on no CPU, and no autocast, which knows devices by their names."""
    if request.param not in dispatch.available_backends():
        pytest.skip(f"no {request.param} here")
    monkeypatch.setattr(dispatch.get(request.param), "supports", lambda device, dtype: True)
    monkeypatch.setattr(dispatch, "_picked", {})
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())
    with dispatch.use_backend(request.param):
        yield


@pytest.fixture
def told(monkeypatch):
    """How many tensors were taken to the device by the function that does not wait for it."""
    moved = []
    for module in (step, gradcache, targets, packed_tokens):
        plain = module.to_device

        def to_device(tensor, device, plain=plain):
            moved.append(tensor.device.type == "cpu")
            return plain(tensor, device)

        monkeypatch.setattr(module, "to_device", to_device)
    return moved


VARIANTS = ("dense", "sb-moe", "sb-moe-all", "moe", "moe-sigmoid", "random", "random-sb")
CASES = [dict(variant=variant) for variant in VARIANTS]
CASES += [dict(chunk_size=4, variant=variant) for variant in ("sb-moe", "moe-sigmoid")]
CASES += [dict(loss=loss, negatives=negatives) for loss in LOSSES for negatives in (0, 2)]
CASES += [dict(dropout=0.1, clip=1.0), dict(dropout=0.1, variant="moe", checkpointing=True)]
CASES += [dict(pooling=pooling) for pooling in ("cls", "max", "mean-max")]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step(case, on_a_device, told):
    take, optimizer = a_step(**case)
    batches = [packed(make_batch(ALONE, number, 6, case.get("negatives", 2))) for number in range(2)]
    with Arrivals() as arrivals:
        outcome = take(batches)
    assert {tensor.device.type for tensor in outcome} == {"meta"}
    (found,) = optimizer.found
    assert found.device.type == "meta"
    assert not hasattr(optimizer, "found_inf")
    assert arrivals.count == sum(told) > 0, "a tensor was taken to the device by a copy that the host waits for"


def a_step(variant="sb-moe", loss="infonce", chunk_size=0, clip=0.0, checkpointing=False, negatives=2, **options):
    retriever = tiny_retriever(variant, **options).to(NOWHERE.device).train()
    retriever.encoder.gradient_checkpointing = checkpointing
    for layer in retriever.modules():
        if hasattr(layer, "balance_coef"):
            layer.balance_coef, layer.z_coef, layer.importance_coef = 0.3, 0.02, 0.1
    optimizer, scaler = Optimizer(), torch.amp.GradScaler("cpu", enabled=False)
    rest = dict(chunk_size=chunk_size, clip=clip)
    return Step(retriever, retriever, Objective(loss), optimizer, scaler, NOWHERE.device, **rest), optimizer


def packed(batch):
    return Batch(PackedTokens(batch.queries), PackedTokens(batch.documents), batch.targets)


def test_what_asks_is_found(on_a_device, monkeypatch):
    """The proof of the proof."""
    for ask in (torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu, bool, lambda loss: loss[loss > 0]):

        def asking(self, *arguments, ask=ask, plain=Objective.__call__):
            loss = plain(self, *arguments)
            ask(loss)
            return loss

        with monkeypatch.context() as patch:
            patch.setattr(Objective, "__call__", asking)
            take, _ = a_step()
            with pytest.raises((RuntimeError, NotImplementedError)):
                take([packed(make_batch(ALONE, 0, 6, 2))])


def fused(parameters):
    return torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1, fused=True)


def test_a_fused_optimizer_leaves_a_step_by_itself():
    """What is finite makes the step that it would have made; what is not changes neither weights nor their moments."""
    torch.manual_seed(0)
    ours, theirs = ([torch.randn(5, 3).requires_grad_(), torch.randn(4).requires_grad_()] for _ in range(2))
    for own, other in zip(ours, theirs):
        other.data.copy_(own)
    mine, plain = fused(ours), fused(theirs)
    for number, norm in enumerate([1.0, float("inf"), 2.0, float("nan"), 3.0]):
        gradients = [torch.randn(parameter.shape) for parameter in ours]
        is_finite = number % 2 == 0
        for own, other, gradient in zip(ours, theirs, gradients):
            own.grad = gradient if is_finite else gradient * float("nan")
            other.grad = gradient
        step_if_finite(mine, torch.tensor(norm))
        if is_finite:
            plain.step()
        assert all(torch.equal(own, other) for own, other in zip(ours, theirs))
        for own, other in zip(ours, theirs):
            assert all(torch.equal(mine.state[own][name], plain.state[other][name]) for name in plain.state[other])
    assert int(mine.state[ours[0]]["step"]) == 3
