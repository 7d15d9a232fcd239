"""The processes of a run: one a device, started by torchrun or alone."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import kernels
from kernels.losses import moe_layers
from moe_retrieval.copies import to_device
from moe_retrieval.errors import InputError
from moe_retrieval.locks import locked
from moe_retrieval.models.encoder import pack
from moe_retrieval.models.retriever import Retriever
from moe_retrieval.training import process_group, rng


@dataclass(frozen=True)
class World:
    """Which process this is, of how many, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, total: int) -> list[int]:
        """How many of `total` rows each rank has when rank r takes the rows r::size.

        >>> World(0, 4, torch.device("cpu")).share(6)
        [2, 2, 1, 1]
        """
        return [len(range(rank, total, self.size)) for rank in range(self.size)]


@contextmanager
def running_world() -> Iterator[World]:
    """Joins the processes that torchrun started; alone where it did not. Leaves them at the end.

    Inside, rank 0 alone warns: what it says is true of every rank.
    """
    joins = "WORLD_SIZE" in os.environ and not dist.is_initialized()
    device = _device(int(os.environ.get("LOCAL_RANK", "0")) if joins else _own_rank()[0])
    with process_group.joined("nccl" if device.type == "cuda" else "gloo") if joins else nullcontext():
        rank, size = _own_rank()
        log = logging.getLogger("moe_retrieval")
        level = log.level
        if rank:
            log.setLevel(logging.ERROR)
        try:
            yield World(rank, size, device)
        finally:
            log.setLevel(level)


def _own_rank() -> tuple[int, int]:
    """-> which process this is, of how many"""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def main_first(world: World) -> Iterator[None]:
    """Rank 0 does what is inside, then the others. Where its input is bad, the others end without a word."""
    if not world.is_main and share_number(0.0):
        raise SystemExit(2)
    try:
        yield
    except InputError:
        if world.is_main:
            share_number(1.0)
        raise
    if world.is_main:
        share_number(0.0)


@contextmanager
def sole_use(folder: str | Path | None, world: World, flag: str = "--output-dir") -> Iterator[None]:
    """No other run writes to this folder, which the flag names, meanwhile; rank 0 sees to it."""
    with ExitStack() as stack:
        with main_first(world):
            if world.is_main:
                stack.enter_context(locked(folder, flag))
        yield


def share_number(value: float) -> float:
    """Rank 0's number, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    box = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(box, 0)
    return box.item()


def mean_of_ranks(values: Sequence[Tensor], world: World) -> Tensor:
    """Of scalars, in one exchange; what lies on the host comes along."""
    stacked = torch.stack([to_device(value.detach().double(), world.device) for value in values])
    if world.size > 1:
        dist.all_reduce(stacked)
    return stacked / world.size


def means(values: Sequence[Tensor], world: World) -> list[float]:
    return mean_of_ranks(values, world).tolist()


# Rows of every rank, with gradient.


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, counts):
        ctx.start, ctx.count = sum(counts[: dist.get_rank()]), len(rows)
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts)])

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad[ctx.start : ctx.start + ctx.count], None


def gather_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """The rows of rank 0, then those of rank 1, ...; counts[r] is how many rank r has.

    The gradient of a rank's rows is the sum of what all ranks send back: DDP's mean over ranks then is the gradient of
    the mean of their losses.
    """
    return rows if len(counts) == 1 else _GatherRows.apply(rows, counts)


# Data parallelism.


def parallelize(retriever: Retriever, world: World) -> nn.Module:
    """The retriever itself for one process; else in DDP."""

    def first_loss(parallel: nn.Module) -> Tensor:
        return parallel(*pack([[0, 1], [1]], world.device)).sum() + kernels.aux_loss(retriever)

    parallel = in_parallel(retriever, world, first_loss)
    if parallel is not retriever:
        for layer in moe_layers(retriever).values():
            layer.sums.clear(layer.router.weight)
    return parallel


def in_parallel(model: nn.Module, world: World, first_loss: Callable[[nn.Module], Tensor]) -> nn.Module:
    """The model itself for one process; else in DDP, with the layout of its buckets fixed before the first step.

    DDP orders its buckets anew after the first backward, and with more than two ranks the order decides in which order
    gradients are added. One backward whose gradients are dropped does that here, that of `first_loss`, in which every
    parameter has a part: a run and its resumption then sum alike.
    """
    if world.size == 1:
        return model
    ids = [world.device] if world.device.type == "cuda" else None
    with warnings.catch_warnings():
        # torch 2.13 has a new name for it, torch 2.11 the old one alone
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        # gradients lie in the buckets, and not in a copy beside them
        parallel = DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)
    with rng.kept(world.device):
        parallel.train()
        first_loss(parallel).backward()
    parallel.zero_grad(set_to_none=True)
    return parallel


def without_sync(model: Any) -> Any:
    """A context whose backward passes leave each rank's gradients alone."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
