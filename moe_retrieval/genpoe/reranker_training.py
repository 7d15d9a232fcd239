"""Training of a reranker: of each question's passages, the one that answers it is to have the highest score."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.groups import Group, Groups
from moe_retrieval.genpoe.learned import learned
from moe_retrieval.genpoe.prompts import PROMPTS
from moe_retrieval.genpoe.reranker import Reranker, RerankerSettings, load_causal
from moe_retrieval.genpoe.reranker_config import TrainRerankerConfig
from moe_retrieval.models import backbones
from moe_retrieval.models.precision import autocast
from moe_retrieval.models.typed import MOST
from moe_retrieval.training import checkpoint, rng
from moe_retrieval.training.checkpoint import Progress, Trained
from moe_retrieval.training.distributed import World, running_world, sole_use
from moe_retrieval.training.history import History
from moe_retrieval.training.interruption import Interruption
from moe_retrieval.training.optimizer import lr_factor, set_lr
from moe_retrieval.training.order import BatchOrder
from moe_retrieval.training.resumption import (
    check_total,
    checkpoints,
    discard_checkpoints,
    find_resumption,
    settle_precision,
)
from moe_retrieval.training.step import update


def train_reranker(config: TrainRerankerConfig) -> None:
    """Trains as the config says, and leaves the reranker in its output directory."""
    with running_world() as world, sole_use(config.output_dir, world), ExitStack() as ends:
        if world.size > 1:
            raise InputError(f"a reranker is trained by one process, got {world.size}: start it without torchrun")
        _train(settle_precision(config, world), world, ends)


def _train(config: TrainRerankerConfig, world: World, ends: ExitStack) -> None:
    """`ends` is what must end with the steps, however they end."""
    resumed = find_resumption(config, world)
    groups = Groups(config.data)
    rng.seed(config.seed, world.rank)
    reranker = make_reranker(config, groups.prompt, world.device)
    take_step = Step(reranker, config)
    order = BatchOrder(len(groups), config.batch_size, config.seed)
    total = count_steps(config, len(order))
    progress = Progress()
    if resumed is not None:
        progress, _ = checkpoint.restore(resumed, world, take_step.trained)
        check_total(total, progress.step)
    elif config.resume == "never":
        discard_checkpoints(config, world)
    history = ends.enter_context(History(Path(config.output_dir) / "log.jsonl", progress.step, world))
    interruption = ends.enter_context(Interruption())
    history.say(f"{len(groups):,} questions, {total} steps, {take_step.size:,} parameters learn, {config.precision}")
    history.start_meter(total, progress.step)
    warmup = round(config.warmup * total)
    while progress.step < total:
        set_lr(take_step.trained.optimizer, lr_factor(progress.step, total, warmup, config.schedule))
        epoch, place = divmod(progress.step, len(order))
        rows = [int(row) for row in order.batches(epoch)[place]]
        loss, norm = take_step([drawn(groups[row], config, epoch, row) for row in rows])
        progress.step += 1
        history.write(step=progress.step, loss=loss, gradient_norm=norm)
        history.advance(progress.step, loss, take_step.trained.optimizer.param_groups[0]["lr"])
        is_due = config.save_every and progress.step % config.save_every == 0
        if is_due or interruption.wanted or progress.step == total:
            checkpoint.save(checkpoints(config), world, take_step.trained, progress, asdict(config))
        if interruption.wanted:
            history.say(f"saved at step {progress.step}; the same command goes on")
            raise KeyboardInterrupt
    ends.close()
    reranker.save(Path(config.output_dir))
    reranker.say_what_was_cut()
    history.say(f"the reranker is in {config.output_dir}")


def count_steps(config: TrainRerankerConfig, batches_an_epoch: int) -> int:
    """The steps of the epochs, at most `max_steps`."""
    if config.epochs is None and config.max_steps is not None:
        return config.max_steps
    return min((config.epochs or 1) * batches_an_epoch, config.max_steps or MOST)


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


class Step:
    """Forward, backward and update for the questions of a batch, some at a time."""

    def __init__(self, reranker: Reranker, config: TrainRerankerConfig):
        self.reranker, self.config = reranker, config
        self.parameters = learned(reranker.model)
        self.size = sum(parameter.numel() for parameter in self.parameters.values())
        matrices = [parameter for parameter in self.parameters.values() if parameter.ndim > 1]
        others = [parameter for parameter in self.parameters.values() if parameter.ndim <= 1]
        groups = [
            {"params": matrices, "lr": config.lr, "peak": config.lr, "weight_decay": config.weight_decay},
            {"params": others, "lr": config.lr, "peak": config.lr, "weight_decay": 0.0},
        ]
        adam = torch.optim.AdamW([group for group in groups if group["params"]], fused=True)
        scaler = torch.amp.GradScaler(reranker.device.type, enabled=config.precision == "fp16")
        self.trained = Trained(self.parameters, adam, scaler)

    def __call__(self, groups: Sequence[tuple[str, list[str]]]) -> tuple[float, float]:
        """-> the loss, and the norm of the gradient before clipping"""
        trained, total = self.trained, 0.0
        together = self.config.chunk_size or len(groups)
        for start in range(0, len(groups), together):
            loss = self.loss(groups[start : start + together]) / len(groups)
            trained.scaler.scale(loss).backward()
            total += loss.item()
        if not math.isfinite(total):
            raise InputError(f"the loss is {total}: lower --lr, or use --precision fp32")
        norm = update(list(self.parameters.values()), trained.optimizer, trained.scaler, self.config.clip).item()
        if not (math.isfinite(norm) or trained.scaler.is_enabled()):  # fp16 lowers its scale until gradients fit
            raise InputError(f"the gradient's norm is {norm}: lower --lr, or use --precision fp32")
        return total, norm

    def loss(self, groups: Sequence[tuple[str, list[str]]]) -> Tensor:
        """The sum over these questions."""
        sequences = [each for query, texts in groups for each in self.reranker.sequences(query, texts)]
        with autocast(self.reranker.device, self.config.precision):
            scores = self.reranker.logits(sequences)
        scores_QG = scores.view(len(groups), -1)
        return F.cross_entropy(scores_QG, scores_QG.new_zeros(len(groups), dtype=torch.long), reduction="sum")
