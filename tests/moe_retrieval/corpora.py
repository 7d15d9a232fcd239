"""Small collections on disk, and the real ones where $MOE_RETRIEVAL_DATA has them."""

import json
import os
import zlib
from pathlib import Path

import pytest
import torch

from moe_retrieval.models.usage import Usage
from moe_retrieval.retrieval.encode import encode_texts

WORDS = ["moss", "fern", "oak", "pine", "reed", "iris", "sage", "mint", "rose", "lily", "palm", "bark", "root", "leaf"]


def real(name: str) -> Path:
    """The folder of a real collection; the test is skipped where there is none."""
    data = os.environ.get("MOE_RETRIEVAL_DATA")
    if not data:
        pytest.skip("MOE_RETRIEVAL_DATA is not set")
    if not (Path(data) / name).is_dir():
        pytest.skip(f"{name} is not in $MOE_RETRIEVAL_DATA")
    return Path(data) / name


def write_lines(path: Path, records: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_beir(folder: Path, documents: dict, queries: dict, qrels: dict) -> Path:
    """documents: id -> text or (title, text); qrels: split -> query id -> document id -> relevance"""
    records = []
    for name, value in documents.items():
        title, text = value if isinstance(value, tuple) else ("", value)
        records.append({"_id": name, "title": title, "text": text})
    write_lines(folder / "corpus.jsonl", records)
    write_lines(folder / "queries.jsonl", [{"_id": name, "text": text} for name, text in queries.items()])
    (folder / "qrels").mkdir(exist_ok=True)
    for split, judged in qrels.items():
        rows = [f"{query}\t{document}\t{score}" for query, docs in judged.items() for document, score in docs.items()]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n")
    return folder


def plants(folder: Path, num_documents: int = 60, num_queries: int = 20) -> Path:
    """Document i holds a few words that only it has together; query i asks for document 2i by two of them."""
    documents = {
        f"d{i}": (f"Plant {i}", " ".join(WORDS[(i * step + step) % len(WORDS)] for step in (1, 3, 7, 9, 11)) + f" n{i}")
        for i in range(num_documents)
    }
    queries = {f"q{i}": f"which plant has n{2 * i}" for i in range(num_queries)}
    judged = {f"q{i}": {f"d{2 * i}": 1} for i in range(num_queries)}
    half = {query: docs for query, docs in judged.items() if int(query[1:]) % 2}
    rest = {query: docs for query, docs in judged.items() if query not in half}
    return write_beir(folder, documents, queries, {"train": half, "test": rest})


class StandIn:
    """A model's face over hashed words: deterministic, no weights, texts that share words are near each other."""

    usage = Usage(query_length=32, doc_length=64)
    precision = "fp32"
    device = torch.device("cpu")

    def __init__(self, hidden_size: int = 64, seed: int = 0):
        self.hidden_size, self.seed = hidden_size, seed
        self.fingerprint = f"stand-in-{hidden_size}-{seed}"
        self.tokenizer = self
        self.table = torch.randn(4096, hidden_size, generator=torch.Generator().manual_seed(seed))
        self.batches: list[list[int]] = []

    def encode_batch(self, texts, max_length):
        words = [text.lower().split(None, max_length)[: max_length - 1] for text in texts]
        return [[1, *(zlib.crc32(word.encode()) % 4094 + 2 for word in some)] for some in words]

    def encode_and_count(self, texts, max_length):
        return self.encode_batch(texts, max_length), sum(len(text.split()) >= max_length for text in texts)

    def embed_tokens(self, sequences):
        self.batches.append([len(sequence) for sequence in sequences])
        starts = torch.tensor([0, *map(len, sequences[:-1])]).cumsum(0)
        tokens = torch.tensor([token for sequence in sequences for token in sequence])
        sums = torch.nn.functional.embedding_bag(tokens, self.table, starts, mode="sum")
        return torch.nn.functional.normalize(sums, dim=1)

    def encode_query(self, texts):
        return encode_texts(self, texts, "query")

    def encode_document(self, texts):
        return encode_texts(self, texts, "document")
