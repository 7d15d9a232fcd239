"""A collection whose documents are of several domains, and models with experts to look at them."""

import torch

from moe_retrieval import data
from moe_retrieval.retrieval.model import Model
from tests.moe_retrieval.corpora import WORDS, write_lines
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer

DOMAINS = ("pond", "wood", "pond", None, "wood", "pond")
"""Of document i, the one at i % 6."""


def write_gardens(folder, documents=48, queries=16, domains=DOMAINS):
    """Query i asks for document 3i by two of its words."""
    records = []
    for number in range(documents):
        words = [WORDS[(number * step + step) % len(WORDS)] for step in (1, 3, 5, 9)]
        domain = domains[number % len(domains)]
        metadata = {} if domain is None else {"metadata": {"domain": domain}}
        records.append({"_id": f"d{number}", "title": f"n{number}", "text": " ".join(words), **metadata})
    write_lines(folder / "corpus.jsonl", records)
    asked = [{"_id": f"q{i}", "text": f"n{3 * i} {records[3 * i]['text'].split()[1]}"} for i in range(queries)]
    write_lines(folder / "queries.jsonl", asked)
    (folder / "qrels").mkdir(exist_ok=True)
    rows = "".join(f"q{i}\td{3 * i}\t1\n" for i in range(queries))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return folder


def gardens(folder, **sizes):
    return data.load(write_gardens(folder, **sizes))


def model_with_experts(variant, seed=0):
    retriever = tiny_retriever(variant, seed)
    with torch.no_grad():
        for layer in retriever.expert_layers().values():
            if getattr(layer, "router", None) is not None:
                layer.router.weight *= 4  # far from a tie
                if layer.router.balance_bias is not None:
                    layer.router.balance_bias += torch.tensor([0.3, -0.2, 0.1, 0.0])
    return Model(retriever, tiny_tokenizer(), "fp32", torch.device("cpu"))
