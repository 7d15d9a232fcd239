"""DDP over gloo processes gives the gradients of one process with the whole batch, the router's losses included."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

import kernels
from bench.harness import processes
from tests.kernels.cases import COEFFICIENTS
from tests.kernels.oracle import relative_error


class Model(nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(6, 8)
        self.moe = kernels.MoE(8, 10, num_experts=4, top_k=1, **COEFFICIENTS)
        self.block = kernels.SBMoE(8, 5, num_experts=3, noise=False, router="sigmoid", **COEFFICIENTS)
        nn.init.normal_(self.block.experts.down_weight)
        with torch.no_grad():  # the router reads the sign of one feature: see `batch`
            self.embed.weight[0] = torch.eye(6)[0]
            self.moe.router.weight.zero_()
            self.moe.router.weight[:, 0] = torch.tensor([5.0, 1.0, -1.0, -5.0])
        self.to(dtype)

    def forward(self, x):
        h = self.embed(x)
        return self.block(h + self.moe(h))


def batch(ranks):
    """Rank 0's tokens go to expert 0, the others' to expert 3: each rank starves experts that another one feeds."""
    torch.manual_seed(1)
    x = torch.randn(ranks, 5, 6, dtype=torch.float64)
    x[:, :, 0] = x[:, :, 0].abs() + 1
    x[1:, :, 0] *= -1
    return x


def step(model, x, layers, before=False):
    """`before`: after a step of which the router's losses were left out, whose tokens count in those of this one."""
    if before:
        model(x * 2).square().mean().backward()
        layers.zero_grad()
    loss = model(x).square().mean() + model(x * 0.5).square().mean() + kernels.aux_loss(layers)
    loss.backward()
    return {name: p.grad for name, p in layers.named_parameters()}


def on_a_rank(device, before):
    model = Model()
    parallel = DistributedDataParallel(model)
    with kernels.record_routing(model.moe) as log:
        grads = step(parallel, batch(dist.get_world_size())[dist.get_rank()], model, before)
    counts = log[""][0].counts_E.tolist()
    kernels.update_balance(model, rate=0.1)
    return counts, {k: g.numpy() for k, g in grads.items()}, model.block.router.balance_bias.numpy()


@pytest.mark.filterwarnings("ignore:kernels.aux_loss")
@pytest.mark.parametrize("ranks,before", [(2, True), pytest.param(4, False, marks=pytest.mark.slow)])
def test_gradients_of_one_process(ranks, before):
    results = processes.run(on_a_rank, ranks, 1, torch.device("cpu"), before)
    whole = Model()
    expected = step(whole, batch(ranks).flatten(0, 1), whole, before)
    kernels.update_balance(whole, rate=0.1)
    for rank, (counts, grads, balance_bias) in enumerate(results):
        assert counts == ([5, 0, 0, 0] if rank == 0 else [0, 0, 0, 5])
        for name, ref in expected.items():
            assert relative_error(torch.from_numpy(grads[name]), ref) < 1e-12, name
        assert torch.equal(torch.from_numpy(balance_bias), whole.block.router.balance_bias)


def in_half(device):
    model = Model(torch.float32)
    x = batch(dist.get_world_size())[dist.get_rank()].float()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        return {name: grad.numpy() for name, grad in step(DistributedDataParallel(model), x, model).items()}


LIMITS = {"router": 1e-6, "experts": 2**-8, "embed": 2**-6}
"""The gate stays fp32. A rank's gradient of an expert is rounded to bf16, and so is that of one process. The first
layer is PyTorch's own; its parts on the ranks are larger than their mean.
"""


def test_autocast_gives_the_gradients_of_one_process():
    results = processes.run(in_half, 2, 1, torch.device("cpu"))
    whole, wide = Model(torch.float32), Model()
    exact = step(wide, batch(2).flatten(0, 1), wide)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = step(whole, batch(2).flatten(0, 1).float(), whole)
    for name, ref in expected.items():
        (limit,) = (limit for part, limit in LIMITS.items() if part in name)
        assert ref.dtype == torch.float32
        for grads in results:
            assert relative_error(torch.from_numpy(grads[name]), ref) < limit, name
    assert relative_error(expected["moe.experts.up_weight"], exact["moe.experts.up_weight"]) > 2**-10  # it is bf16


def compiled(device):
    """-> of each way to compile: how many graphs there were, and the gradients"""
    results = []
    for wrap in (
        DistributedDataParallel,
        lambda model: DistributedDataParallel(torch.compile(model, fullgraph=True, backend="aot_eager")),
        lambda model: torch.compile(DistributedDataParallel(model), backend="aot_eager"),
    ):
        torch._dynamo.reset()
        counters.clear()
        model = Model()
        parallel = wrap(model)
        for _ in range(2):  # DDP orders its buckets anew after the first step
            model.zero_grad()
            grads = step(parallel, batch(dist.get_world_size())[dist.get_rank()], model)
        results.append((counters["stats"]["unique_graphs"], {name: grad.numpy() for name, grad in grads.items()}))
    return results


@pytest.mark.slow
def test_compiled_gives_the_gradients_of_eager_mode():
    """The whole model is one graph; the second way breaks in DDP's own forward before it."""
    for (_, expected), *others in processes.run(compiled, 2, 1, torch.device("cpu")):
        for graphs, grads in others:
            assert graphs == 1
            assert grads.keys() == expected.keys()
            assert all((grads[name] == expected[name]).all() for name in expected)
