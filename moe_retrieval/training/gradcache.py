"""A step over a batch that is larger than memory, with the gradient of the whole batch (Gao et al. 2021).

The loss needs all embeddings at once, but an embedding needs only its own text: so compute embeddings without
gradient, differentiate the loss with respect to them, and then compute them again, a chunk at a time, to carry that
gradient into the weights. The losses of the routers are functions of the whole batch too: their statistics are summed
in the first pass, and each chunk of the second adds its part of their gradient.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import kernels
from moe_retrieval.copies import to_device
from moe_retrieval.models.encoder import pack
from moe_retrieval.models.retriever import Retriever
from moe_retrieval.training import rng
from moe_retrieval.training.distributed import without_sync

Tokens = Sequence[Sequence[int]]


class Chunk(NamedTuple):
    side: int
    tokens: Tokens
    state: dict[str, Tensor]
    """The random state before the first pass: the second drops and disturbs the same."""


class GradCache:
    """`model` is the retriever or what DDP made of it; `autocast` makes the context of a forward."""

    def __init__(
        self,
        model: nn.Module,
        retriever: Retriever,
        chunk_size: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
    ):
        self.model, self.retriever, self.chunk_size = model, retriever, chunk_size
        self.device, self.autocast = device, autocast

    def step(
        self, sides: Sequence[Tokens], loss: Callable[[list[Tensor]], Tensor], backward: Callable[[Tensor], None]
    ) -> tuple[Tensor, Tensor]:
        """Adds the gradient of loss(embeddings of each side) + aux_loss to the weights; -> both values.

        `backward` is given what to differentiate, so that the caller can scale it.
        """
        chunks, embeddings = self.embed_without_gradient(sides)
        totals = kernels.router_totals(self.retriever)
        value, gradients = self.differentiate(loss, embeddings)
        aux = self.carry_into_weights(chunks, gradients, totals, backward)
        return value, aux

    def embed_without_gradient(self, sides: Sequence[Tokens]) -> tuple[list[Chunk], list[Tensor]]:
        chunks = []
        embeddings = []
        with torch.no_grad(), kernels.collect_without_grad():
            for side, tokens in enumerate(sides):
                parts = []
                for start in range(0, max(1, len(tokens)), self.chunk_size):
                    chunk = Chunk(side, tokens[start : start + self.chunk_size], rng.capture(self.device))
                    with self.autocast():
                        parts.append(self.retriever(*pack(chunk.tokens, self.device)))
                    chunks.append(chunk)
                embeddings.append(torch.cat(parts))
        return chunks, embeddings

    def differentiate(
        self, loss: Callable[[list[Tensor]], Tensor], embeddings: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        leaves = [side.requires_grad_() for side in embeddings]
        value = loss(leaves)
        gradients = torch.autograd.grad(value, leaves)
        return value.detach(), list(gradients)

    def carry_into_weights(
        self, chunks: list[Chunk], gradients: list[Tensor], totals: list[Tensor], backward: Callable[[Tensor], None]
    ) -> Tensor:
        after = rng.capture(self.device)
        remaining = list(gradients)
        aux = torch.zeros(())
        for number, chunk in enumerate(chunks):
            gradient, remaining[chunk.side] = remaining[chunk.side].split(
                [len(chunk.tokens), len(remaining[chunk.side]) - len(chunk.tokens)]
            )
            rng.restore(chunk.state, self.device)
            is_last = number == len(chunks) - 1
            if is_last:
                aux = self._backward_chunk(chunk, gradient, totals, backward)
            else:
                with without_sync(self.model):
                    self._backward_chunk(chunk, gradient, totals, backward)
        rng.restore(after, self.device)
        return aux

    def _backward_chunk(
        self, chunk: Chunk, gradient: Tensor, totals: list[Tensor], backward: Callable[[Tensor], None]
    ) -> Tensor:
        with self.autocast():
            embeddings = self.model(*pack(chunk.tokens, self.device))
        aux = kernels.aux_loss(self.retriever, totals=totals)
        backward((embeddings * gradient).sum() + to_device(aux, embeddings.device))
        return aux.detach()
