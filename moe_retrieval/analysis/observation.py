"""One pass over texts with an eye on every layer of experts: what each token or text is, and where it went.

A unit is what a layer routes: a token inside the encoder, a text in the pooled layer. Shape suffixes: T units of a
batch, M terms in them, N texts, D domains, E experts, H hidden.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from kernels.layers import RoutedLayer
from moe_retrieval.analysis.redundancy import Sample
from moe_retrieval.analysis.terms import TermCounts, Words
from moe_retrieval.models.hash_experts import HashExperts
from moe_retrieval.models.precision import PRECISIONS
from moe_retrieval.models.retriever import Retriever
from moe_retrieval.progress import Meter
from moe_retrieval.retrieval.encode import check_finite, token_batches
from moe_retrieval.retrieval.model import Model

Side = Literal["query", "document"]
SIDES: tuple[Side, ...] = ("query", "document")


class Passed(NamedTuple):
    """What a layer did with a batch."""

    x_TH: Tensor
    share_TE: Tensor
    """What part of a unit each expert had: an equal one of the chosen, the gate's weights where all run on all."""
    confidence_T: Tensor | None
    """The largest probability that the router gives; None where a hash chooses"""


@contextmanager
def watching(retriever: Retriever) -> Iterator[dict[str, Passed]]:
    """While it lasts: layer -> what it did last."""
    last: dict[str, Passed] = {}

    def remember(name: str) -> Callable[..., None]:
        def hook(layer: Any, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            last[name] = _passed(layer, arguments)

        return hook

    hooks = [layer.register_forward_hook(remember(name)) for name, layer in retriever.expert_layers().items()]
    try:
        with kernels.record_routing(retriever):
            yield last
    finally:
        for hook in hooks:
            hook.remove()


def _passed(layer: RoutedLayer | HashExperts, arguments: tuple[Tensor, ...]) -> Passed:
    x_TH = arguments[0].float().cpu()
    if isinstance(layer, HashExperts):
        return Passed(x_TH, _equal_shares(layer.choose(arguments[1]), layer.num_experts), None)
    assert layer.recorder is not None
    routing = layer.recorder.pop()
    if layer.top_k == "all":
        share_TE = (routing.weights_TK / routing.weights_TK.sum(1, keepdim=True)).double().cpu()
    else:
        share_TE = _equal_shares(routing.indices_TK, layer.num_experts)
    logits_TE = F.logsigmoid(routing.logits_TE) if layer.router_kind == "sigmoid" else routing.logits_TE
    return Passed(x_TH, share_TE, logits_TE.softmax(-1).amax(-1).double().cpu())


def _equal_shares(indices_TK: Tensor, num_experts: int) -> Tensor:
    tokens, top_k = indices_TK.shape
    share_TE = torch.zeros(tokens, num_experts, dtype=torch.float64)
    return share_TE.scatter_(1, indices_TK.long().cpu(), 1 / top_k)


class Units(NamedTuple):
    """What a layer routes of a batch, and the terms in it."""

    rows_T: Tensor
    """The text that each is, or is a token of"""
    terms_M: Tensor
    units_M: Tensor
    """The unit that each term is in"""


class Seen:
    """What became of the texts of one side in one layer."""

    def __init__(self, num_experts: int, domains_N: Tensor, num_domains: int):
        """`domains_N` is the number of each text's domain."""
        self.domains_N = domains_N
        self.share_DE = torch.zeros(num_domains, num_experts, dtype=torch.float64)
        self.count_D = torch.zeros(num_domains, dtype=torch.int64)
        self.terms = TermCounts(num_experts)
        self.expert_N = np.zeros(len(domains_N), dtype=np.int64)
        """Of each text, the expert that did most of it; of equal ones the first."""
        self._confidence_N: Tensor | None = None
        self._units_N = torch.zeros(len(domains_N), dtype=torch.float64)

    def add(self, passed: Passed, units: Units) -> None:
        domains_T = self.domains_N[units.rows_T]
        self.share_DE.index_add_(0, domains_T, passed.share_TE)
        self.count_D += domains_T.bincount(minlength=len(self.count_D))
        rows_N, text_T = units.rows_T.unique(return_inverse=True)  # a text comes whole: it is in no other batch
        had_NE = passed.share_TE.new_zeros(len(rows_N), passed.share_TE.shape[1]).index_add_(0, text_T, passed.share_TE)
        self.expert_N[rows_N.numpy()] = had_NE.numpy().argmax(1)
        self.terms.add(units.terms_M, passed.share_TE[units.units_M])
        if passed.confidence_T is not None:
            if self._confidence_N is None:
                self._confidence_N = torch.zeros_like(self._units_N)
            self._confidence_N.index_add_(0, units.rows_T, passed.confidence_T)
            self._units_N.index_add_(0, units.rows_T, torch.ones_like(passed.confidence_T))

    def confidence_N(self) -> np.ndarray | None:
        """Of each text, the mean over its units; None where a hash chooses."""
        return None if self._confidence_N is None else (self._confidence_N / self._units_N.clamp(min=1)).numpy()


class Observation(NamedTuple):
    """Of the texts of one side."""

    embeddings_NH: np.ndarray
    layers: dict[str, Seen]
    pooled_NH: np.ndarray | None
    """What went into the pooled layer, where it has a router: an expert of it can be removed without the encoder"""


class Observer:
    """Watches the layers of a model; what both sides share is kept here."""

    def __init__(self, model: Model, num_domains: int):
        self.model, self.num_domains = model, num_domains
        self.layers = model.retriever.expert_layers()
        self.samples = {name: Sample() for name in self.layers}
        self.words = Words()

    def observe(self, texts: Sequence[str], side: Side, domains_N: Tensor) -> Observation:
        embeddings_NH = np.empty((len(texts), self.model.hidden_size), dtype=np.float32)
        pooled = next((name for name, layer in self.layers.items() if layer is self.model.retriever.block), None)
        has_router = isinstance(self.model.retriever.block, RoutedLayer)
        pooled_NH = np.empty_like(embeddings_NH) if has_router else None
        seen = {name: Seen(layer.num_experts, domains_N, self.num_domains) for name, layer in self.layers.items()}
        label = {"query": "queries", "document": "documents"}[side]
        with self._watching() as last, Meter(label, len(texts), "texts") as meter:
            for rows, sequences in token_batches(self.model, texts, side):
                embeddings_NH[rows] = self.model.embed_tokens(sequences).cpu().numpy()
                check_finite(embeddings_NH[rows])
                for name, passed in last.items():
                    units = self._texts(rows, sequences) if name == pooled else _tokens(rows, sequences)
                    seen[name].add(passed, units)
                    self.samples[name].add(passed.x_TH)
                    if name == pooled and pooled_NH is not None:
                        pooled_NH[rows] = passed.x_TH.numpy()
                meter.advance(len(rows))
        return Observation(embeddings_NH, seen, pooled_NH)

    def has_router(self, name: str) -> bool:
        """Whether it is no hash that chooses the experts of this layer."""
        return isinstance(self.layers[name], RoutedLayer)

    @contextmanager
    def _watching(self) -> Iterator[dict[str, Passed]]:
        """With the encoder as one native pass, where its own layers have no experts to watch."""
        retriever, dtype = self.model.retriever, PRECISIONS[self.model.precision]
        retriever.freeze(dtype, to_the_end=False)
        try:
            with watching(retriever) as last:
                yield last
        finally:
            retriever.freeze(dtype)

    def _texts(self, rows: list[int], sequences: list[list[int]]) -> Units:
        return Units(torch.tensor(rows), *self.words.of(self.model.tokenizer.decode_batch(sequences)))

    def term_names(self, name: str) -> Callable[[int], str]:
        """Of this layer: the number of a term -> the term."""
        if self.layers[name] is self.model.retriever.block:
            return self.words.names().__getitem__
        return self.model.tokenizer.token


def _tokens(rows: list[int], sequences: list[list[int]]) -> Units:
    lengths_N = torch.tensor([len(sequence) for sequence in sequences])
    ids_T = torch.tensor([token for sequence in sequences for token in sequence])
    return Units(torch.tensor(rows).repeat_interleave(lengths_N), ids_T, torch.arange(len(ids_T)))
