"""A model of a few thousand parameters, for tests."""

import torch

from moe_retrieval.models.encoder import EncoderShape, pack
from moe_retrieval.models.loading import build_from_scratch
from moe_retrieval.models.tokenizer import train_tokenizer

SHAPE = EncoderShape(vocab_size=400, hidden_size=24, num_layers=2, num_heads=3, ffn_size=40, max_positions=32)

VARIANTS = {
    "dense": dict(variant="dense"),
    "sb-moe": dict(variant="sb-moe", expert_changes=dict(num_experts=3)),
    "sb-moe-all": dict(variant="sb-moe", expert_changes=dict(num_experts=3, top_k="all", combine="normalized")),
    "moe": dict(variant="moe", expert_changes=dict(num_experts=4)),
    "moe-sigmoid": dict(variant="moe", expert_changes=dict(num_experts=4, router="sigmoid")),
    "dense-wide": dict(variant="dense-wide", control_of="moe", expert_changes=dict(num_experts=4)),
    "dense-wide-sb": dict(variant="dense-wide", control_of="sb-moe"),
    "random": dict(variant="random", control_of="moe", expert_changes=dict(num_experts=4)),
    "random-sb": dict(variant="random", control_of="sb-moe"),
}


def tiny_retriever(variant="dense", seed=0, noise=True, **options):
    """With every parameter away from zero, so that no layer is the identity and nothing hides behind a zero."""
    torch.manual_seed(seed)
    settings = dict(VARIANTS[variant])
    if not noise and variant != "dense":
        settings["expert_changes"] = settings.get("expert_changes", {}) | {"noise": False}
    retriever = build_from_scratch(SHAPE, **settings, **options)
    with torch.no_grad():
        for parameter in retriever.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return retriever


def embed(retriever, token_ids):
    """-> the embeddings of lists of token ids, without gradient."""
    with torch.no_grad():
        return retriever.eval()(*pack(token_ids))


def tiny_tokenizer():
    words = "sort a tensor along one of its dimensions and keep equal rows in the order in which they came"
    return train_tokenizer([words, words.upper(), "abcdefghijklmnopqrstuvwxyz 0123456789"] * 3, 300)


def token_lists(count, longest=20, seed=1):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(5, SHAPE.vocab_size, (length,), generator=generator).tolist() for length in lengths]
