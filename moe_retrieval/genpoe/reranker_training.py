"""Training of a reranker: of each question's passages, the one that answers it is to have the highest score."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.groups import Group, Groups
from moe_retrieval.genpoe.language_models import load_causal
from moe_retrieval.genpoe.prompts import PROMPTS
from moe_retrieval.genpoe.reranker import Reranker, RerankerSettings
from moe_retrieval.genpoe.reranker_config import TrainRerankerConfig
from moe_retrieval.models import backbones
from moe_retrieval.training import rng
from moe_retrieval.training.distributed import World
from moe_retrieval.training.example_steps import Step, one_process, take_steps
from moe_retrieval.training.resumption import find_resumption, settle_precision


def train_reranker(config: TrainRerankerConfig) -> None:
    """Trains as the config says, and leaves the reranker in its output directory."""
    with one_process(config, "a reranker") as world:
        _train(settle_precision(config, world), world)


def _train(config: TrainRerankerConfig, world: World) -> None:
    resumed = find_resumption(config, world)
    groups = Groups(config.data)
    rng.seed(config.seed, world.rank)
    reranker = make_reranker(config, groups.prompt, world.device)

    def draw(epoch: int, row: int) -> tuple[str, list[str]]:
        return drawn(groups[row], config, epoch, row)

    step = Step(reranker.model, lambda examples: total_loss(reranker, examples), config, world)
    take_steps(step, len(groups), draw, resumed, f"{len(groups):,} questions")
    reranker.save(Path(config.output_dir))
    reranker.say_what_was_cut()
    tqdm.write(f"the reranker is in {config.output_dir}")


def make_reranker(config: TrainRerankerConfig, prompt: str, device: torch.device) -> Reranker:
    """With the whole model, or what LoRA adds to it, to learn."""
    model, tokenizer = load_causal(backbones.find(config.model), torch.float32)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.lora_rank:
        model = with_lora(model, config.lora_rank, config.lora_alpha or 2 * config.lora_rank)
    by = next((by for by, known in PROMPTS.items() if known == prompt), "passage")
    settings = RerankerSettings(by, prompt, config.against_no, config.max_length)
    return Reranker(model.train(), tokenizer, settings, device)


def with_lora(model: Any, rank: int, alpha: int) -> Any:
    """The layers are those that peft takes for this kind of model."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise InputError("--lora-rank needs peft: pip install 'moe-retrieval[lora]'") from None
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha))


def drawn(group: Group, config: TrainRerankerConfig, epoch: int, row: int) -> tuple[str, list[str]]:
    """A question, and its passages in this epoch: one that answers it first, then those that do not."""
    random = np.random.default_rng([config.seed, epoch, row])
    rounds = -(-(config.group_size - 1) // len(group.neg))
    wrong = [place for _ in range(rounds) for place in random.permutation(len(group.neg))]
    right = group.pos[random.integers(len(group.pos))]
    return group.query, [right, *(group.neg[place] for place in wrong[: config.group_size - 1])]


def total_loss(reranker: Reranker, examples: Sequence[tuple[str, list[str]]]) -> Tensor:
    """Over questions, each with the passage that answers it first."""
    sequences = [each for query, texts in examples for each in reranker.sequences(query, texts)]
    scores_QG = reranker.logits(sequences).view(len(examples), -1)
    return F.cross_entropy(scores_QG, scores_QG.new_zeros(len(examples), dtype=torch.long), reduction="sum")
