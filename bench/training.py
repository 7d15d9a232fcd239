"""One training step, from token ids to changed weights: ours and what people use today, from the same weights.

InfoNCE over in-batch negatives at temperature 0.05, dropout 0.1, bf16 autocast, AdamW, gradients clipped at 1. The
learning rate is 0: every step works on the same numbers, so its loss can be checked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bench import texts
from bench.embedders import DOC_LENGTH, QUERY_LENGTH, mean_embedding, sentence_transformer
from bench.layer_case import importable
from bench.record import OURS
from bench.timing import interleave

DROPOUT, TEMPERATURE = 0.1, 0.05
TOLERANCE = 0.05
"""Of the loss, in bf16, against transformers in fp32."""

StepCall = Callable[[], Tensor]
"""Takes a step; returns its loss."""


@dataclass(frozen=True)
class Job:
    """What is trained on: a share of `pairs` in each process."""

    folder: Path
    pairs: int
    rounds: int
    only: tuple[str, ...] = ()
    """The contenders that take part, if not all."""


def measure(device: torch.device, job: Job) -> dict[str, list[float]]:
    """-> seconds of each step, by contender. Every rank calls this; all take the same number of steps."""
    size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    makers = {OURS: _ours("dense"), f"{OURS} sb-moe": _ours("sb-moe"), f"{OURS} moe": _ours("moe")}
    makers["transformers"] = _transformers
    if size == 1 and importable("sentence_transformers"):
        makers["sentence-transformers"] = _sentence_transformers
    makers = {name: make for name, make in makers.items() if not job.only or name in job.only}
    all_pairs = _token_ids(job)
    own = [side[rank::size] for side in all_pairs]
    truth_of_all, truth_of_own = (_loss_of_transformers(job.folder, *pairs, device) for pairs in (all_pairs, own))
    steps = {}
    for name, make in makers.items():
        loss, truth = make(job.folder, *own, device, False)().double(), truth_of_own
        if name.startswith(OURS):  # whose negatives are those of all ranks
            loss, truth = _mean_over_ranks(loss), truth_of_all
        assert abs(loss.item() - truth) <= TOLERANCE * truth, f"{name}: the loss is {loss:.4f}, not {truth:.4f}"
        steps[name] = make(job.folder, *own, device, True)
    # A fixed number of rounds: ranks that stopped by their own clocks would wait for each other.
    return interleave(steps, seconds=0.0, min_rounds=job.rounds, min_sample=0.0, device=device).seconds


def _token_ids(job: Job) -> tuple[list[list[int]], list[list[int]]]:
    from moe_retrieval.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(job.folder)
    queries = tokenizer.encode_batch(texts.queries(job.pairs), QUERY_LENGTH)
    return queries, tokenizer.encode_batch(texts.documents(job.pairs), DOC_LENGTH)


def _mean_over_ranks(value: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def _ours(variant: str) -> Callable[..., StepCall]:
    def make(folder: Path, queries, documents, device: torch.device, training: bool) -> StepCall:
        from moe_retrieval.distributed import World, parallelize
        from moe_retrieval.losses import Objective, Targets
        from moe_retrieval.model import build_retriever
        from moe_retrieval.optimizer import make_optimizer
        from moe_retrieval.step import Batch, Step

        torch.manual_seed(0)
        retriever = build_retriever(str(folder), folder, variant, dropout=DROPOUT).to(device).train(training)
        size = dist.get_world_size() if dist.is_initialized() else 1
        rank = dist.get_rank() if dist.is_initialized() else 0
        model = parallelize(retriever, World(rank, size, device)).train(training)
        keys = torch.arange(len(queries))[:, None] + rank * len(queries)
        batch = Batch(queries, documents, Targets(keys, keys, [len(queries)] * size))
        step = Step(
            model, retriever, Objective(temperature=TEMPERATURE), make_optimizer(retriever, 0.0, 0.0, 0.01),
            torch.amp.GradScaler(device.type, enabled=False), device, "bf16", clip=1.0,
        )  # fmt: skip
        return lambda: step([batch]).loss

    return make


def _transformers(folder: Path, queries, documents, device: torch.device, training: bool) -> StepCall:
    """The loop of a tutorial; under DDP, negatives are those of the process, as tutorials have it."""
    from transformers import AutoModel

    dropout = dict(hidden_dropout_prob=DROPOUT, attention_probs_dropout_prob=DROPOUT)
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False, **dropout).to(device).train(training)
    if dist.is_initialized() and dist.get_world_size() > 1:
        model = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    sides = [_padded(side, device) for side in (queries, documents)]

    def loss() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            queries_NH, documents_NH = (mean_embedding(model, *side) for side in sides)
        return _info_nce(queries_NH, documents_NH)

    return _updating(model, loss)


def _sentence_transformers(folder: Path, queries, documents, device: torch.device, training: bool) -> StepCall:
    try:
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    except ImportError:  # before its version 6
        from sentence_transformers.losses import MultipleNegativesRankingLoss

    model = sentence_transformer(folder, "fp32", device).train(training)
    for module in model.modules():  # its loaders take the config of the checkpoint
        if isinstance(module, nn.Dropout):
            module.p = DROPOUT
    objective = MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)
    sides = [dict(zip(("input_ids", "attention_mask"), _padded(side, device))) for side in (queries, documents)]

    def loss() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return objective([dict(side) for side in sides], None)

    return _updating(model, loss)


def _updating(model: nn.Module, loss: Callable[[], Tensor]) -> StepCall:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.01, fused=True)

    def step() -> Tensor:
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return step


def _padded(sequences: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    rows = [torch.tensor(sequence) for sequence in sequences]
    input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return input_ids.to(device), (torch.arange(input_ids.shape[1]) < lengths[:, None]).long().to(device)


def _info_nce(queries_NH: Tensor, documents_NH: Tensor) -> Tensor:
    scores_NN = queries_NH.float() @ documents_NH.float().T / TEMPERATURE
    return F.cross_entropy(scores_NN, torch.arange(len(scores_NN), device=scores_NN.device))


def _loss_of_transformers(folder: Path, queries, documents, device: torch.device) -> float:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).to(device).eval()
    with torch.no_grad():
        sides = [mean_embedding(model, *_padded(side, device)) for side in (queries, documents)]
        return _info_nce(*sides).item()
