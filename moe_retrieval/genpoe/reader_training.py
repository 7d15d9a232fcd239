"""Training of a hypernetwork: a language model that stays as it is must answer with the experts that it makes."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.examples import Example, Passage, answered, read_examples
from moe_retrieval.genpoe.language_models import load_language
from moe_retrieval.genpoe.reader import Asked, Reader, ReaderSettings
from moe_retrieval.genpoe.reader_files import save_reader
from moe_retrieval.genpoe.train_config import TrainConfig, parse_layers
from moe_retrieval.models import backbones
from moe_retrieval.models.precision import PRECISIONS
from moe_retrieval.progress import Meter
from moe_retrieval.training import rng
from moe_retrieval.training.distributed import World, in_parallel, main_first, running_world, sole_use
from moe_retrieval.training.example_steps import Step, take_steps
from moe_retrieval.training.resumption import find_resumption, settle_precision

log = logging.getLogger("moe_retrieval")

MOST_NEGATIVES = 64
"""Passages without an answer that are kept of a question that was not retrieved for"""

MOST_STANDARD = 4096
"""Passages by which embeddings are standardized"""


def train(config: TrainConfig) -> None:
    """Trains as the config says, and leaves hypernetworks in its output directory."""
    with running_world() as world, sole_use(config.output_dir, world):
        _train(settle_precision(config, world), world)


def _train(config: TrainConfig, world: World) -> None:
    resumed = find_resumption(config, world)
    with main_first(world):  # it may download what the others then find
        examples = read_training(config.data, config.passages)
        rng.seed(config.seed, rank=0)  # every rank makes the same hypernetworks
        reader = _new_reader(config, world)
        reader.standardize([passage for each in examples for passage in _candidates(each)][:MOST_STANDARD])
    rng.seed(config.seed, world.rank)
    objective = in_parallel(Objective(reader), world, lambda parallel: parallel([]))

    def draw(epoch: int, row: int) -> Asked:
        return drawn(reader, examples[row], config, [epoch, row])

    step = Step(reader.networks, objective, config, world)
    take_steps(step, len(examples), draw, resumed, f"{len(examples):,} questions, layers {reader.settings.layers}")
    if world.is_main:
        save_reader(reader, Path(config.output_dir), config.model)
        tqdm.write(f"the hypernetwork is in {config.output_dir}")
    if reader.wording.cut:
        log.warning("%d passages are longer than --passage-length, and were cut", len(reader.wording.cut))


def _new_reader(config: TrainConfig, world: World) -> Reader:
    model, tokenizer = load_language(backbones.find(config.model), PRECISIONS[config.precision])
    if config.gradient_checkpointing:
        recompute_blocks(model)
    middle = (round(model.config.num_hidden_layers / 3),)
    layers = middle if config.layers is None else parse_layers(config.layers)
    settings = ReaderSettings(layers, config.rank, config.bottleneck, config.titles, config.passage_length)
    return Reader(model, tokenizer, settings, world.device, config.precision)


def recompute_blocks(model: Any) -> None:
    """Gradient checkpointing of a model that does not learn, and whose dropout stays off.

    transformers recomputes blocks in training alone: so the blocks believe in one, and nothing inside of them does.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


def read_training(path: str, passages: int) -> list[Example]:
    """The questions that have passages, with as much of these as is used."""
    found, left_out = [], 0
    with Meter(f"reading {path}"):
        for example in answered(read_examples(path), path):
            kept = example._replace(
                ctxs=example.ctxs[:passages],
                positives=() if example.ctxs else example.positives,
                hard_negatives=() if example.ctxs else example.hard_negatives[:MOST_NEGATIVES],
            )
            if _candidates(kept):
                found.append(kept)
            else:
                left_out += 1
    if not found:
        raise InputError(f'{path}: none of {left_out} questions has passages, in "ctxs" or "positive_ctxs"')
    if left_out:
        log.warning("%s: %d questions have no passages and are left out", path, left_out)
    return found


def _candidates(example: Example) -> Sequence[Passage]:
    """The ranked passages, or those that answer."""
    return example.ctxs or example.positives


def drawn(reader: Reader, example: Example, config: TrainConfig, place: Sequence[int]) -> Asked:
    """A question with one of its answers and its passages, those of this place in the data alone."""
    random = np.random.default_rng([config.seed, *place])
    answer = example.answers[random.integers(len(example.answers))]
    count = int(random.integers(1, config.passages + 1)) if config.fewer else config.passages
    passages = list(example.ctxs)
    if not passages:
        others = random.permutation(len(example.hard_negatives))[: count - 1]
        right = example.positives[random.integers(len(example.positives))]
        passages = [right, *(example.hard_negatives[row] for row in others)]
    used = passages[:count]
    question, target = reader.wording.answered(example.question, answer, used[: config.in_prompt])
    return Asked(question, used, target)


class Objective(nn.Module):
    """What DDP is to see of a reader: what learns, and the loss."""

    def __init__(self, reader: Reader):
        super().__init__()
        self.networks = reader.networks
        self.loss = reader.loss

    def forward(self, asked: Sequence[Asked]) -> Tensor:
        if not asked:  # a rank without a question takes part all the same
            return 0.0 * torch.stack([parameter.sum() for parameter in self.networks.parameters()]).sum()
        return self.loss(asked)
