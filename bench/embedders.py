"""Texts to embeddings: ours, and what people use today, all from the same weights.

Each is a function of a list of texts and whether they are queries; embeddings are normalised means over 256 tokens of a
document or 64 of a query.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from bench.layer_case import importable
from bench.record import OURS

if TYPE_CHECKING:
    from moe_retrieval.model import Model

Embed = Callable[[Sequence[str], bool], np.ndarray]

DOC_LENGTH, QUERY_LENGTH = 256, 64
BATCH = 32
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def embedders(folder: Path, precision: str, device: torch.device) -> dict[str, Embed]:
    """Contender -> its function; sentence-transformers in fp32, its default, too, and ours with experts in bf16."""
    found = {OURS: ours(folder, "dense", precision, device)}
    for variant in ("sb-moe", "moe") if precision != "fp32" else ():
        found[f"{OURS} {variant}"] = ours(folder, variant, precision, device)
    found[f"transformers {precision}"] = transformers(folder, precision, device)
    if importable("sentence_transformers"):
        for kind in dict.fromkeys([precision, "fp32"]):
            found[f"sentence-transformers {kind}"] = sentence_transformers(folder, kind, device)
    return found


def why_skipped() -> dict[str, str]:
    return {} if importable("sentence_transformers") else {"sentence-transformers": "is not importable"}


def ours(folder: Path, variant: str, precision: str, device: torch.device) -> Embed:
    return embed_with(our_model(folder, variant, precision, device))


def embed_with(model: "Model") -> Embed:
    return lambda texts, is_query: (model.encode_query if is_query else model.encode_document)(texts)


def our_model(folder: Path, variant: str, precision: str, device: torch.device) -> "Model":
    from moe_retrieval.model import Model, build_retriever
    from moe_retrieval.tokenizer import load_tokenizer

    lengths = dict(doc_length=DOC_LENGTH, query_length=QUERY_LENGTH)
    retriever = build_retriever(str(folder), folder, variant, **lengths)
    return Model(retriever, load_tokenizer(folder), precision, device)


def transformers(folder: Path, precision: str, device: torch.device) -> Embed:
    """What its model cards say: padded batches, the mean over tokens; sorted by length."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=DTYPES[precision]).to(device).eval()

    def embed(texts: Sequence[str], is_query: bool) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        rows = np.empty((len(texts), model.config.hidden_size), np.float32)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            length = QUERY_LENGTH if is_query else DOC_LENGTH
            batch = tokenizer(
                [texts[row] for row in chosen], padding=True, truncation=True, max_length=length, return_tensors="pt"
            ).to(device)
            with torch.inference_mode():
                rows[chosen] = mean_embedding(model, batch["input_ids"], batch["attention_mask"]).float().cpu().numpy()
        return rows

    return embed


def mean_embedding(model: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    hidden_NLH = model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    keep_NL1 = attention_mask[:, :, None].to(hidden_NLH.dtype)
    return F.normalize((hidden_NLH * keep_NL1).sum(1) / keep_NL1.sum(1), dim=-1)


def sentence_transformers(folder: Path, precision: str, device: torch.device) -> Embed:
    model = sentence_transformer(folder, precision, device)

    def embed(texts: Sequence[str], is_query: bool) -> np.ndarray:
        model.max_seq_length = QUERY_LENGTH if is_query else DOC_LENGTH
        options = dict(batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)
        if precision == "fp32":
            return model.encode(list(texts), **options)
        return model.encode(list(texts), convert_to_tensor=True, **options).float().cpu().numpy()

    return embed


def sentence_transformer(folder: Path, precision: str, device: torch.device):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device=str(device), model_kwargs={"dtype": DTYPES[precision]})


def relative_error(out: np.ndarray, ref: np.ndarray) -> float:
    return float(np.linalg.norm(out - ref) / np.linalg.norm(ref))


def check(found: dict[str, Embed], texts: Sequence[str], is_query: bool, truth: Embed, dtype: torch.dtype) -> None:
    """Raises AssertionError where a contender embeds these texts otherwise than `truth`, a model in fp32."""
    expected = truth(texts, is_query)
    for name, embed in found.items():
        error = relative_error(embed(texts, is_query), expected)
        assert error <= TOLERANCE[dtype], f"{name}: embeddings are off by {error:.1e}"
