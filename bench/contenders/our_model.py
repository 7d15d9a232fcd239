"""Our own retriever as a contender: the one place that uses the modules of moe_retrieval."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from bench.contenders.embedding import DOC_LENGTH, NEAREST, QUERY_LENGTH, Embed, Search
from bench.contenders.training_loop import DROPOUT, TEMPERATURE, Pairs, StepCall
from kernels.layers import moe_layers

if TYPE_CHECKING:
    from moe_retrieval.retrieval.model import Model


def minilm() -> Path:
    from moe_retrieval.models.backbones import find

    return find("minilm")


def save_tokenizer(folder: Path, texts: Sequence[str], vocab_size: int) -> int:
    """Trains one on these texts. -> how many tokens it has"""
    from moe_retrieval.models.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(texts, vocab_size=vocab_size)
    tokenizer.save(folder)
    return tokenizer.vocab_size


def documentation() -> Sequence[str]:
    """Of the installed packages."""
    from moe_retrieval.data import docs

    return docs.load().documents.texts


def build(folder: Path, variant: str, precision: str, device: torch.device, **experts: object) -> "Model":
    from moe_retrieval.models.loading import build_retriever
    from moe_retrieval.models.tokenizer import load_tokenizer
    from moe_retrieval.retrieval.model import Model

    lengths = dict(doc_length=DOC_LENGTH, query_length=QUERY_LENGTH)
    retriever = build_retriever(str(folder), folder, variant, expert_changes=experts, **lengths)
    return Model(retriever, load_tokenizer(folder), precision, device)


def embedder(folder: Path, variant: str, precision: str, device: torch.device) -> Embed:
    return embed_with(build(folder, variant, precision, device))


def embed_with(model: "Model") -> Embed:
    return lambda texts, is_query: (model.encode_query if is_query else model.encode_document)(texts)


def encode_file(model: "Model", corpus: Path) -> None:
    """From a memory-mapped corpus.jsonl to a file of embeddings beside it."""
    from moe_retrieval.data.records import Documents
    from moe_retrieval.retrieval.encode import encode_texts

    documents = Documents(corpus)
    output = corpus.with_suffix(".npy")
    encode_texts(model, documents.texts, output=output, fingerprint=documents.fingerprint)


def tokens_a_window() -> int:
    from moe_retrieval.retrieval.encode import MAX_TOKENS

    return MAX_TOKENS


def search(embed: Embed, vectors_NH: np.ndarray, device: torch.device) -> Search:
    from moe_retrieval.retrieval.exact import nearest

    return lambda asked: nearest(embed(asked, True), vectors_NH, NEAREST, device=device)[1].tolist()


def scifact_ndcg(model: "Model") -> float:
    from moe_retrieval.data import load
    from moe_retrieval.evaluation.results import evaluate_model

    return evaluate_model(model, load("scifact"), "test", progress=False)["NDCG@10"]


# Training.


def token_ids(
    folder: Path, queries: Sequence[str], documents: Sequence[str]
) -> tuple[list[list[int]], list[list[int]]]:
    from moe_retrieval.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    return tokenizer.encode_batch(queries, QUERY_LENGTH), tokenizer.encode_batch(documents, DOC_LENGTH)


def training_step(variant: str, **experts: object) -> Callable[[Pairs, bool], StepCall]:
    def make(pairs: Pairs, training: bool) -> StepCall:
        from moe_retrieval.models.loading import build_retriever
        from moe_retrieval.training.distributed import World, parallelize
        from moe_retrieval.training.losses import Objective
        from moe_retrieval.training.optimizer import make_optimizer
        from moe_retrieval.training.step import Batch, Step
        from moe_retrieval.training.targets import Targets

        torch.manual_seed(0)
        device, count = pairs.device, len(pairs.queries)
        retriever = build_retriever(str(pairs.folder), pairs.folder, variant, expert_changes=experts, dropout=DROPOUT)
        retriever = retriever.to(device).train(training)
        rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        model = parallelize(retriever, World(rank, size, device)).train(training)
        keys = torch.arange(count)[:, None] + rank * count
        batch = Batch(pairs.queries, pairs.documents, Targets(keys, keys, [count] * size))
        step = Step(
            model, retriever, Objective(temperature=TEMPERATURE), make_optimizer(retriever, 0.0, 0.0, 0.01),
            torch.amp.GradScaler(device.type, enabled=False), device, "bf16", clip=1.0,
        )  # fmt: skip
        return lambda: step([batch]).loss

    return make


# The parts of a model.


def blocks(model: "Model") -> nn.Module:
    return model.retriever.encoder.blocks


def flops(model: "Model", corpus: Sequence[str]) -> int:
    """Of the blocks, on the tokens that the texts have: what any implementation must do."""
    lengths = [len(sequence) for sequence in model.tokenizer.encode_batch(list(corpus), model.usage.doc_length)]
    shape = model.retriever.encoder.shape
    named = dict(blocks(model).named_parameters())
    weights = sum(weight.numel() for name, weight in named.items() if weight.ndim == 2 and not name.endswith("bias"))
    for layer in moe_layers(blocks(model)).values():
        of_experts = sum(parameter.numel() for parameter in layer.experts.parameters() if parameter.ndim == 3)
        weights += of_experts * layer.number_chosen // layer.num_experts
    attention = 4 * shape.hidden_size * shape.num_layers
    return sum(2 * weights * length + attention * length**2 for length in lengths)


@contextmanager
def in_parts(model: "Model") -> Iterator[None]:
    """The model calls its modules one by one, as it does in training."""
    from moe_retrieval.models.precision import PRECISIONS

    model.retriever.thaw()
    try:
        yield
    finally:
        model.retriever.freeze(PRECISIONS[model.precision])


def with_pooled_layer(dense: "Model", folder: Path) -> tuple["Model", "Model"]:
    """-> sb-moe on the encoder of `dense`, and the same in fp32 on an encoder of its own.

    Its layer is not a new one, which would be the identity and hide a wrong one.
    """
    torch.manual_seed(0)
    model = build(folder, "sb-moe", "bf16", dense.device)
    model.retriever.block.experts.down_weight.normal_(std=0.5)
    exact = build(folder, "sb-moe", "fp32", dense.device)
    exact.retriever.block.load_state_dict(model.retriever.block.state_dict())
    model.retriever.encoder = dense.retriever.encoder
    from moe_retrieval.models.precision import PRECISIONS

    for each in (model, exact):
        each.retriever.freeze(PRECISIONS[each.precision])
    return model, exact


def pooled_layer_bytes(model: "Model") -> int:
    """That a query reads: its gate, without what draws noise in training, and the experts that are chosen."""
    layer = model.retriever.block
    gate = sum(parameter.nbytes for parameter in layer.gate_weights() if parameter is not None)
    return gate + weight_bytes(layer.experts) * layer.number_chosen // layer.num_experts


def weight_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
