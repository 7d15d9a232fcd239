"""One step of training: from token ids to changed weights."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import kernels
from moe_retrieval.copies import to_device
from moe_retrieval.models.encoder import pack
from moe_retrieval.models.precision import autocast
from moe_retrieval.models.retriever import Retriever
from moe_retrieval.training.distributed import without_sync
from moe_retrieval.training.gradcache import GradCache, Tokens
from moe_retrieval.training.losses import Objective
from moe_retrieval.training.targets import Targets


class Batch(NamedTuple):
    """A rank's share of a batch."""

    queries: Tokens
    documents: Tokens
    """The positive of each query, then the first negative of each, ..."""
    targets: Targets


class Outcome(NamedTuple):
    """What a step was like; the tensors are this rank's, and their mean over ranks is the batch's."""

    loss: Tensor
    aux: Tensor
    gradient_norm: Tensor
    """Before clipping; not finite where the step was skipped."""


@dataclass
class Step:
    """Forward, backward, clipping, update. One call takes the micro-batches that are accumulated."""

    model: nn.Module
    """The retriever, or what DDP made of it."""
    retriever: Retriever
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    precision: str = "fp32"
    clip: float = 0.0
    chunk_size: int = 0
    """Texts at a time (GradCache); 0 is all at once."""

    def __call__(self, batches: Sequence[Batch]) -> Outcome:
        losses, auxes = [], []
        for number, batch in enumerate(batches):
            is_last = number == len(batches) - 1
            with nullcontext() if is_last else without_sync(self.model):
                loss, aux = self._accumulate(batch, 1 / len(batches))
            losses.append(loss)
            auxes.append(aux)
        norm = self._update()
        return Outcome(torch.stack(losses).mean(), torch.stack(auxes).mean(), norm)

    def _accumulate(self, batch: Batch, weight: float) -> tuple[Tensor, Tensor]:
        sides = (batch.queries, batch.documents)
        targets = batch.targets.to(self.device)

        def loss(embeddings: list[Tensor]) -> Tensor:
            queries_NH, documents_NH = embeddings
            columns = targets.keys_NC.shape[1]
            return self.objective(queries_NH, documents_NH.unflatten(0, (columns, len(queries_NH))), targets)

        def backward(value: Tensor) -> None:
            self.scaler.scale(value * weight).backward()

        if self.chunk_size:
            cache = GradCache(self.model, self.retriever, self.chunk_size, self.device, self._autocast)
            return cache.step(sides, loss, backward)
        with self._autocast():
            embeddings = [self.model(*pack(tokens, self.device)) for tokens in sides]
        value = loss(embeddings)
        aux = to_device(kernels.aux_loss(self.retriever), self.device)
        backward(value + aux)
        return value.detach(), aux.detach()

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.device, self.precision)

    def _update(self) -> Tensor:
        norm = update(list(self.retriever.parameters()), self.optimizer, self.scaler, self.clip)
        kernels.update_balance(self.retriever)
        return norm


def update(
    parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, clip: float
) -> Tensor:
    """Takes the step that the gradients say, and drops them; -> their norm before clipping, for which 0 is no limit.

    Gradients that are not finite change nothing: fp16 lowers its scale, and the caller gets the norm.
    """
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(parameters, clip or float("inf"))
    if scaler.is_enabled():
        scaler.step(optimizer)
        scaler.update()
    elif norm.device.type != "cpu":
        step_if_finite(optimizer, norm)
    elif norm.isfinite():
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def step_if_finite(optimizer: Any, norm: Tensor) -> None:
    """A step that a fused optimizer takes or leaves by itself, told as a GradScaler tells it: the host, which would
    have to wait for the norm, does not look."""
    optimizer.found_inf = (~norm.isfinite()).float()
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf
