"""W processes are one big batch."""

import logging

import pytest
import torch

from moe_retrieval.training.distributed import World, running_world
from tests.moe_retrieval.steps import ALONE, relative_error, run, run_on

CASES = [
    dict(variant="sb-moe"),
    dict(variant="moe"),
    dict(variant="moe", chunk_size=4),
    dict(variant="moe", accumulate=2),
    dict(variant="moe-sigmoid", chunk_size=4),
    dict(variant="random"),
    dict(variant="sb-moe-all", negatives=0),
    dict(variant="dense", loss="triplet", negatives=0),
    dict(variant="dense", loss="contrastive"),
]
CASES += [dict(variant=name, dtype=dtype, adam=False) for name in ("sb-moe", "moe") for dtype in ("float32", "float64")]
TOLERANCE = {"float64": 1e-12, "float32": 1e-6}


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_equal_one_big_batch(size, tmp_path):
    """With AdamW in fp64, and with plain steps: Adam hides a wrong scale, and makes a step of fp32's rounding errors.

    The loss, the auxiliary loss and the gradient's norm are compared too, and every rank must hold the same bits.
    """
    results = run_on(size, CASES, tmp_path)
    for case, (states, outcomes) in zip(CASES, results):
        tolerance = TOLERANCE[case.get("dtype", "float64")]
        reference, reference_outcomes = run(ALONE, **case)
        assert relative_error(outcomes.mean(0), reference_outcomes) < tolerance, case
        for name, expected in reference.items():
            assert relative_error(states[0][name], expected) < tolerance, (case, name)
            assert all(torch.equal(state[name], states[0][name]) for state in states), (case, name)


def test_the_reference_moves_every_parameter():
    """Else the comparison above could be of things that never change."""
    from tests.moe_retrieval.tiny import tiny_retriever

    state, outcomes = run(ALONE, "moe")
    start = tiny_retriever("moe", noise=False).double().state_dict()
    still = [name for name in state if relative_error(state[name], start[name]) < 1e-6]
    assert not still
    assert (outcomes[:, 1] > 0.1).all()


def test_a_batch_is_shared_out_as_the_data_order_promises():
    assert World(0, 4, torch.device("cpu")).share(3) == [1, 1, 1, 0]
    assert World(0, 3, torch.device("cpu")).share(8) == [3, 3, 2]


def test_other_ranks_are_silent_while_the_world_runs(monkeypatch):
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    log = logging.getLogger("moe_retrieval")
    before = log.level
    with running_world() as world:
        assert (world.rank, world.size) == (1, 2)
        assert not log.isEnabledFor(logging.WARNING)
        assert log.isEnabledFor(logging.ERROR)
    assert log.level == before
