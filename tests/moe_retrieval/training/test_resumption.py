"""Finding where to go on changes nothing on the disk; a run that starts anew leaves no old checkpoints; what a run may
change when it goes on."""

from dataclasses import fields, replace

import pytest

from moe_retrieval.config import TrainConfig
from moe_retrieval.errors import InputError
from moe_retrieval.training.resumption import (
    AHEAD,
    AROUND,
    check_total,
    describe_new_total,
    discard_checkpoints,
    find_resumption,
)
from tests.moe_retrieval.rare_words import FAST
from tests.moe_retrieval.steps import ALONE


def test_finding_deletes_nothing(tmp_path):
    config = replace(FAST, output_dir=str(tmp_path), resume="never")
    checkpoint = tmp_path / "checkpoints" / "step-00000004"
    checkpoint.mkdir(parents=True)
    assert find_resumption(config, ALONE) is None
    assert checkpoint.is_dir()
    discard_checkpoints(config, ALONE)
    assert not checkpoint.exists()


def test_what_is_free_to_change_are_flags_and_no_more_than_said():
    assert set(AROUND + AHEAD) < {field.name for field in fields(TrainConfig)}
    assert not {"lr", "warmup", "schedule", "batch_size", "seed", "dataset", "model", "variant"} & set(AROUND + AHEAD)


@pytest.mark.parametrize(
    "schedule, step, total, share",
    [
        ("linear", 100, 200, "56%"),
        ("linear", 10, 1000, "11%"),
        ("constant", 100, 200, "100%"),
        ("linear", 50, 50, "2%"),
    ],
)
def test_a_new_total_says_where_the_learning_rate_is(schedule, step, total, share):
    """By hand: a tenth is warmup; 200 steps fall from 1 at step 20 to 0 at step 200, so step 100 has 100 / 180."""
    said = describe_new_total(TrainConfig(schedule=schedule), 100, total, step)
    assert said.startswith(f"{total} steps instead of 100: from step {step} on")
    assert f"now {share} of its peak" in said


def test_a_total_that_is_past_is_refused():
    check_total(100, 100)
    with pytest.raises(InputError, match="the run is at step 100 already; expected that or more, got 99"):
        check_total(99, 100)
