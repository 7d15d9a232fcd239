"""GradCache is the big batch."""

import pytest
import torch

import kernels
from moe_retrieval.training import optimizer as optimizers
from moe_retrieval.training.distributed import World
from moe_retrieval.training.losses import Objective
from moe_retrieval.training.step import Step
from tests.moe_retrieval.steps import ALONE, make_batch, relative_error, run
from tests.moe_retrieval.tiny import tiny_retriever


@pytest.mark.parametrize("variant", ["dense", "sb-moe", "moe"])
@pytest.mark.parametrize("chunk_size", [1, 5, 12, 1000])
def test_any_chunk_size_equals_the_big_batch(variant, chunk_size):
    reference, reference_outcomes = run(ALONE, variant)
    state, outcomes = run(ALONE, variant, chunk_size=chunk_size)
    assert relative_error(outcomes, reference_outcomes) < 1e-12
    for name, expected in reference.items():
        assert relative_error(state[name], expected) < 1e-12, name


def test_accumulation_over_chunks_equals_accumulation():
    reference, _ = run(ALONE, "moe", accumulate=2)
    state, _ = run(ALONE, "moe", accumulate=2, chunk_size=7)
    for name, expected in reference.items():
        assert relative_error(state[name], expected) < 1e-12, name


def gradients(dtype, chunk_size):
    """What reaches the optimizer from one batch of 24 queries with two hard negatives each."""
    retriever = tiny_retriever("moe", noise=False).to(dtype).train()
    for layer in retriever.modules():
        if hasattr(layer, "balance_coef"):
            layer.balance_coef, layer.z_coef, layer.importance_coef = 0.3, 0.02, 0.1
    optimizer = torch.optim.SGD(retriever.parameters(), 0.0)
    taken = {}
    optimizer.register_step_pre_hook(
        lambda *_: taken.update({name: p.grad.double().clone() for name, p in retriever.named_parameters()})
    )
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    step = Step(retriever, retriever, Objective(), optimizer, scaler, ALONE.device, chunk_size=chunk_size)
    step([make_batch(ALONE, 0, 24, 2)])
    return taken


@pytest.mark.parametrize("backend,limit", [("native", 1e-5), ("eager", 1e-5)])
def test_fp32_differs_from_the_big_batch_by_rounding_alone(backend, limit):
    """Chunks add up in another order. The limits are two to three times the distance of the big batch from fp64."""
    if backend not in kernels.available_backends():
        pytest.skip(f"{backend} is not available here")
    with kernels.use_backend("eager"):
        exact = gradients(torch.float64, 0)
    with kernels.use_backend(backend):
        whole = gradients(torch.float32, 0)
        for chunk_size in (1, 7, 24):
            chunked = gradients(torch.float32, chunk_size)
            for name, expected in exact.items():
                assert relative_error(chunked[name], expected) < limit, (chunk_size, name)
                assert relative_error(chunked[name], whole[name]) < limit, (chunk_size, name)


def one_step(chunk_size, seed=3):
    """With dropout and the router's noise."""
    retriever = tiny_retriever("sb-moe", dropout=0.3).double().train()
    optimizer = optimizers.make_optimizer(retriever, 1e-3, 1e-2, 0.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    step = Step(retriever, retriever, Objective(), optimizer, scaler, ALONE.device, chunk_size=chunk_size)
    torch.manual_seed(seed)
    step([make_batch(World(0, 1, ALONE.device), 0, 8, 1)])
    return retriever.state_dict(), torch.rand(3)


def test_the_second_pass_drops_and_disturbs_what_the_first_did():
    """One chunk a side draws in the order of the plain step, so all of it must be equal, and the state after it."""
    reference, after = one_step(0)
    state, after_cached = one_step(1000)
    assert torch.equal(after, after_cached)
    for name, expected in reference.items():
        assert relative_error(state[name], expected) < 1e-12, name
    other, _ = one_step(0, seed=4)
    assert not torch.equal(other["encoder.tokens.weight"], reference["encoder.tokens.weight"])
