"""Finding where to go on changes nothing on the disk; a run that starts anew leaves no old checkpoints."""

from dataclasses import replace

from moe_retrieval.training.resumption import discard_checkpoints, find_resumption
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
