"""What a run takes along that goes on in another output directory: what its checkpoints expect beside them."""

from pathlib import Path

from moe_retrieval.config import SCRATCH, TrainConfig
from moe_retrieval.errors import InputError
from moe_retrieval.models import export
from moe_retrieval.models.loading import read_run
from moe_retrieval.models.tokenizer import load_tokenizer
from moe_retrieval.training.distributed import World
from moe_retrieval.training.resumption import checkpoints
from moe_retrieval.training.scratch import bring_tokenizer

WEIGHTS = "model.safetensors"


def bring_along(config: TrainConfig, resumed: Path, world: World) -> None:
    """The tokenizer and the best model so far, from the run that this checkpoint is of."""
    here = checkpoints(config)
    if not world.is_main or resumed.parent.resolve() == here.resolve():
        return
    _bring_model(resumed.resolve().parent.parent, Path(config.output_dir), resumed)
    if config.model == SCRATCH:
        bring_tokenizer(config, resumed, world)


def _bring_model(run: Path, output: Path, resumed: Path) -> None:
    if (run / WEIGHTS).is_file():
        card = (run / "README.md").read_text("utf-8")
        export.save(output, read_run(run), load_tokenizer(run), card)
    elif not (output / WEIGHTS).is_file():
        raise InputError(
            f"--resume {resumed}: neither {run} nor {output} has the best model so far: expected a checkpoint where "
            "its run left it"
        )
