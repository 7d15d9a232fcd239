"""AdamW over a backbone and its experts, and the course of their learning rates."""

import math

import torch

from moe_retrieval.errors import InputError
from moe_retrieval.models.retriever import Retriever

SCHEDULES = ("linear", "cosine", "constant")


def make_optimizer(retriever: Retriever, lr: float, expert_lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Backbone and experts with a learning rate each, if they learn; biases and norms of both do not decay."""
    added = {id(parameter) for module in retriever.added_modules() for parameter in module.parameters()}
    groups = []
    for name, rate, is_expert in (("backbone", lr, False), ("experts", expert_lr, True)):
        learning = [(path, p) for path, p in retriever.named_parameters() if p.requires_grad]
        own = [(path, p) for path, p in learning if (id(p) in added) == is_expert]
        decaying = [p for path, p in own if _decays(path)]
        others = [p for path, p in own if not _decays(path)]
        groups += [
            {"name": name, "params": decaying, "lr": rate, "peak": rate, "weight_decay": weight_decay},
            {"name": f"{name}, no decay", "params": others, "lr": rate, "peak": rate, "weight_decay": 0.0},
        ]
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)


def _decays(name: str) -> bool:
    return not (name.endswith("bias") or "norm." in name)


def lr_factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """What the peak rate is multiplied by in step 0, 1, ... total - 1: up over `warmup` steps, then along the schedule.

    >>> [round(lr_factor(step, 6, 2, "linear"), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if schedule not in SCHEDULES:
        raise InputError(f"schedule must be one of {', '.join(SCHEDULES)}; got {schedule!r}")
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if schedule == "linear":
        return 1 - progress
    if schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1.0


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
