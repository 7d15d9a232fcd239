"""The steps of a training whose loss is a sum over examples, whatever learns: over batches of them, saved on the way,
shown and ended by the main loop's own parts."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe_retrieval.errors import InputError
from moe_retrieval.files import check_space
from moe_retrieval.models.precision import autocast
from moe_retrieval.training import checkpoint
from moe_retrieval.training.checkpoint import Progress, Trained
from moe_retrieval.training.distributed import World, main_first, means, running_world, sole_use, without_sync
from moe_retrieval.training.flags import TrainingFlags, count_steps
from moe_retrieval.training.history import History
from moe_retrieval.training.interruption import Interruption
from moe_retrieval.training.learned import learned
from moe_retrieval.training.optimizer import lr_factor, set_lr
from moe_retrieval.training.order import BatchOrder
from moe_retrieval.training.resumption import check_total, checkpoints, discard_checkpoints
from moe_retrieval.training.step import update

Objective = Callable[[Sequence[Any]], Tensor]
"""The sum of the losses of some examples. With several processes, what DDP made of a module that computes it: for no
example, a zero in which every parameter has a part."""


@contextmanager
def one_process(flags: TrainingFlags, what: str) -> Iterator[World]:
    """The world of a training that knows no other ranks, and its output directory to itself."""
    with running_world() as world, sole_use(flags.output_dir, world):
        if world.size > 1:
            raise InputError(f"{what} is trained by one process, got {world.size}: start it without torchrun")
        yield world


class Step:
    """Forward, backward and update for a rank's examples of a batch, some at a time."""

    def __init__(self, model: nn.Module, objective: Objective, flags: TrainingFlags, world: World):
        """What learns are the parameters of `model` that take a gradient."""
        self.objective, self.flags, self.world = objective, flags, world
        self.parameters = learned(model)
        self.size = sum(parameter.numel() for parameter in self.parameters.values())
        matrices = [parameter for parameter in self.parameters.values() if parameter.ndim > 1]
        others = [parameter for parameter in self.parameters.values() if parameter.ndim <= 1]
        groups = [
            {"params": matrices, "lr": flags.lr, "peak": flags.lr, "weight_decay": flags.weight_decay},
            {"params": others, "lr": flags.lr, "peak": flags.lr, "weight_decay": 0.0},
        ]
        adam = torch.optim.AdamW([group for group in groups if group["params"]], fused=True)
        scaler = torch.amp.GradScaler(world.device.type, enabled=flags.precision == "fp16")
        self.trained = Trained(self.parameters, adam, scaler)

    def __call__(self, examples: Sequence[Any], total: int) -> tuple[Tensor, Tensor]:
        """`total`: the examples of all ranks. -> this rank's part of the loss, of which the mean over ranks is the
        batch's, and the norm of the gradient before clipping"""
        together = self.flags.chunk_size or max(1, len(examples))
        chunks = [examples[start : start + together] for start in range(0, len(examples), together)] or [[]]
        loss = 0.0
        for place, chunk in enumerate(chunks, 1):
            with nullcontext() if place == len(chunks) else without_sync(self.objective):
                loss += self._backward(chunk, total)
        norm = update(list(self.parameters.values()), self.trained.optimizer, self.trained.scaler, self.flags.clip)
        return torch.tensor(loss, dtype=torch.float64), norm

    def _backward(self, examples: Sequence[Any], total: int) -> float:
        with autocast(self.world.device, self.flags.precision):
            loss = self.objective(examples) * (self.world.size / total)
        self.trained.scaler.scale(loss).backward()
        return loss.item()


def check_finite(loss: float, norm: float, scales: bool) -> None:
    """`scales`: fp16 lowers its scale until gradients fit."""
    found = {"loss": loss} if scales else {"loss": loss, "gradient's norm": norm}
    for name, value in found.items():
        if not math.isfinite(value):
            raise InputError(f"the {name} is {value}: lower --lr, or use --precision fp32")


def take_steps(
    step: Step, examples: int, draw: Callable[[int, int], Any], resumed: Path | None, title: str,
    data: Mapping[str, str] | None = None,
) -> Progress:  # fmt: skip
    """From the checkpoint `resumed`, or from the start, to the end; `draw(epoch, row)` makes the example of a row, and
    `title` says what is trained on. `data` is for `checkpoint.save`."""
    flags, world, trained = step.flags, step.world, step.trained
    order = BatchOrder(examples, flags.batch_size, flags.seed)
    total = count_steps(flags, len(order))
    progress = Progress()
    if resumed is not None:
        progress, _ = checkpoint.restore(resumed, world, trained)
        check_total(total, progress.step)
    elif flags.resume == "never":
        discard_checkpoints(flags, world)
    with main_first(world):
        if world.is_main:
            check_space(Path(flags.output_dir), checkpoint.room(trained.retriever, checkpoints(flags)))
    warmup = round(flags.warmup * total)
    log = Path(flags.output_dir) / "log.jsonl"
    with History(log, progress.step, world) as history, Interruption() as interruption:
        history.say(f"{title}, {total} steps, {step.size:,} parameters learn, {flags.precision}")
        history.start_meter(total, progress.step)
        while progress.step < total:
            set_lr(trained.optimizer, lr_factor(progress.step, total, warmup, flags.schedule))
            epoch, place = divmod(progress.step, len(order))
            rows = order.batches(epoch)[place]
            own = [draw(epoch, int(row)) for row in rows[world.rank :: world.size]]
            outcome = step(own, len(rows))
            progress.step += 1
            loss, norm, stops = means((*outcome, torch.tensor(float(interruption.wanted))), world)
            check_finite(loss, norm, trained.scaler.is_enabled())
            history.write(step=progress.step, loss=loss, gradient_norm=norm)
            history.advance(progress.step, loss, trained.optimizer.param_groups[0]["lr"])
            is_due = flags.save_every and progress.step % flags.save_every == 0
            if is_due or stops or progress.step == total:
                checkpoint.save(checkpoints(flags), world, trained, progress, asdict(flags), data=data)
            if stops:
                history.say(f"saved at step {progress.step}; the same command goes on")
                raise KeyboardInterrupt
    return progress
