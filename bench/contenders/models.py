"""The contenders of whole models, from the same weights: ours, and what people use today."""

from pathlib import Path

import torch

from bench.contenders import our_model, sentence_transformers, transformers
from bench.contenders.embedding import Embed
from bench.harness.machine import importable
from bench.harness.record import OURS


def embedders(folder: Path, precision: str, device: torch.device) -> dict[str, Embed]:
    """Contender -> its function; sentence-transformers in fp32, its default, too, and ours with experts in bf16."""
    found = {OURS: our_model.embedder(folder, "dense", precision, device)}
    for variant in ("sb-moe", "moe") if precision != "fp32" else ():
        found[f"{OURS} {variant}"] = our_model.embedder(folder, variant, precision, device)
    found[f"transformers {precision}"] = transformers.embedder(folder, precision, device)
    if importable("sentence_transformers"):
        for kind in dict.fromkeys([precision, "fp32"]):
            found[f"sentence-transformers {kind}"] = sentence_transformers.embedder(folder, kind, device)
    return found


def why_skipped() -> dict[str, str]:
    return {} if importable("sentence_transformers") else {"sentence-transformers": "is not importable"}
