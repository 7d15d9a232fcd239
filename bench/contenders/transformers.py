"""A model of transformers, used as its card and the tutorials say."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from bench.contenders.embedding import (
    ATTENTION,
    BATCH,
    DTYPES,
    NEAREST,
    Embed,
    Search,
    embed_sorted,
    mean_embedding,
)
from bench.contenders.training_loop import DROPOUT, PEERS_ATTENTION_DROPOUT, Pairs, StepCall, info_nce, updating


def embedder(
    folder: Path, precision: str, device: torch.device, *, batch: int = BATCH, attention: str = ATTENTION
) -> Embed:
    return _embed_with(_model(folder, precision, device, attention), folder, device, batch)


def compiled_embedder(folder: Path, precision: str, device: torch.device, *, batch: int = BATCH) -> Embed:
    """By torch.compile, once for all sizes and batches."""
    return _embed_with(_compiled(folder, precision, device), folder, device, batch)


@cache
def _compiled(folder: Path, precision: str, device: torch.device) -> Callable[..., Any]:
    return torch.compile(_model(folder, precision, device, ATTENTION), dynamic=True)


def _model(folder: Path, precision: str, device: torch.device, attention: str) -> torch.nn.Module:
    from transformers import AutoModel

    settings = {"dtype": DTYPES[precision], "attn_implementation": attention}
    return AutoModel.from_pretrained(folder, **settings).to(device).eval()


def _embed_with(model: Callable[..., Any], folder: Path, device: torch.device, batch: int) -> Embed:
    """Padded batches, sorted by length; the mean over tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def embed_padded(padded: Mapping[str, Tensor]) -> np.ndarray:
        sides = (padded[name].to(device) for name in ("input_ids", "attention_mask"))
        with torch.inference_mode():
            return mean_embedding(model, *sides).float().cpu().numpy()

    return embed_sorted(tokenizer, batch, "pt", embed_padded)


def search(embed: Embed, vectors_NH: np.ndarray, device: torch.device) -> Search:
    corpus = torch.from_numpy(vectors_NH).to(device)
    return lambda asked: (torch.from_numpy(embed(asked, True)).to(device) @ corpus.T).topk(NEAREST).indices.tolist()


def training_step(pairs: Pairs, training: bool) -> StepCall:
    """Under DDP, negatives are those of the process, as tutorials have it."""
    from transformers import AutoModel

    device = pairs.device
    dropout = dict(hidden_dropout_prob=DROPOUT, attention_probs_dropout_prob=PEERS_ATTENTION_DROPOUT)
    model = AutoModel.from_pretrained(pairs.folder, add_pooling_layer=False, **dropout).to(device).train(training)
    if dist.is_initialized() and dist.get_world_size() > 1:
        model = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    sides = pairs.padded

    def loss() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            queries_NH, documents_NH = (mean_embedding(model, *side) for side in sides)
        return info_nce(queries_NH, documents_NH)

    return updating(model, loss)


def loss_in_fp32(pairs: Pairs) -> float:
    """What the loss of a step must be, without dropout."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(pairs.folder, add_pooling_layer=False).to(pairs.device).eval()
    with torch.no_grad():
        return info_nce(*(mean_embedding(model, *side) for side in pairs.padded)).item()
