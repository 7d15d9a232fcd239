"""sentence-transformers, used as its documentation says."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.contenders.embedding import ATTENTION, BATCH, DOC_LENGTH, DTYPES, NEAREST, QUERY_LENGTH, Embed, Search
from bench.contenders.training_loop import DROPOUT, PEERS_ATTENTION_DROPOUT, TEMPERATURE, Pairs, StepCall, updating


def embedder(
    folder: Path, precision: str, device: torch.device, *, batch: int = BATCH, attention: str = ATTENTION
) -> Embed:
    model = _model(folder, precision, device, attention)

    def embed(texts: Sequence[str], is_query: bool) -> np.ndarray:
        model.max_seq_length = QUERY_LENGTH if is_query else DOC_LENGTH
        options = dict(batch_size=batch, normalize_embeddings=True, show_progress_bar=False)
        if precision == "fp32":
            return model.encode(list(texts), **options)
        return model.encode(list(texts), convert_to_tensor=True, **options).float().cpu().numpy()

    return embed


def _model(folder: Path, precision: str, device: torch.device, attention: str = ATTENTION):
    from sentence_transformers import SentenceTransformer

    settings = {"dtype": DTYPES[precision], "attn_implementation": attention}
    return SentenceTransformer(str(folder), device=str(device), model_kwargs=settings)


def search(embed: Embed, vectors_NH: np.ndarray, device: torch.device) -> Search:
    from sentence_transformers.util import semantic_search

    corpus = torch.from_numpy(vectors_NH).to(device)

    def search(asked: Sequence[str]) -> list[list[int]]:
        hits = semantic_search(torch.from_numpy(embed(asked, True)).to(device), corpus, top_k=NEAREST)
        return [[hit["corpus_id"] for hit in row] for row in hits]

    return search


def training_step(pairs: Pairs, training: bool) -> StepCall:
    try:
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    except ImportError:  # before its version 6
        from sentence_transformers.losses import MultipleNegativesRankingLoss

    model = _model(pairs.folder, "fp32", pairs.device).train(training)
    for name, module in model.named_modules():  # its loaders take the config of the checkpoint
        if isinstance(module, nn.Dropout):
            module.p = PEERS_ATTENTION_DROPOUT if name.endswith("attention.self.dropout") else DROPOUT
    objective = MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)
    sides = [dict(zip(("input_ids", "attention_mask"), side)) for side in pairs.padded]

    def loss() -> Tensor:
        with torch.autocast(pairs.device.type, torch.bfloat16):
            return objective([dict(side) for side in sides], None)

    return updating(model, loss)
