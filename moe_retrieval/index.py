"""python -m moe_retrieval.index: embeds a corpus and leaves a folder that can be searched.

index.faiss         the vectors: exact, HNSW or IVF
documents.jsonl     ids, titles and texts, with starts.npy, where each begins
index.json          which model, how it was used, which corpus; written last, so that half a folder is no index
"""

import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from moe_retrieval.config import parse, run_command
from moe_retrieval.data.records import Documents, StoredDocuments
from moe_retrieval.encode import MAX_TOKENS, encode_texts
from moe_retrieval.errors import InputError
from moe_retrieval.exact import import_faiss, nearest

log = logging.getLogger("moe_retrieval")

KINDS = ("exact", "hnsw", "ivf")
USAGE = ("query_prompt", "doc_prompt", "query_length", "doc_length")


@dataclass
class IndexConfig:
    """Embeds a corpus and builds an index to search. A run that was stopped goes on with the embeddings it had."""

    model: str
    """A run, a Hugging Face directory, an alias (minilm), or a repository of the hub."""
    corpus: str
    """JSON lines with _id, text and perhaps title; or a data set: docs, a name of BEIR, a BEIR-format folder."""
    output_dir: str
    """The folder that becomes the index."""
    data_dir: str | None = None
    """Where data sets lie by name; besides, $MOE_RETRIEVAL_DATA is looked at."""
    kind: Literal["exact", "hnsw", "ivf"] = "exact"
    """hnsw and ivf are faster on many documents and miss some; how many is printed."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    query_length: int | None = None
    """Tokens read of a query; None is the model's own."""
    doc_length: int | None = None
    """Tokens read of a document; None is the model's own."""
    query_prompt: str | None = None
    """Put before a query; None is the model's own."""
    doc_prompt: str | None = None
    """Put before a document; None is the model's own."""
    max_tokens: int = MAX_TOKENS
    """Tokens that are encoded at a time."""
    hnsw_links: int = 32
    """hnsw: neighbours of a document."""
    hnsw_effort: int = 128
    """hnsw: candidates that a search keeps."""
    ivf_lists: int | None = None
    """ivf: lists that the documents are divided into; None is 4 times the square root of their number."""
    ivf_probes: int | None = None
    """ivf: lists that a search reads; None is an eighth of them."""


def build_index(
    model: Any,
    documents: Documents,
    output_dir: str | Path,
    kind: str = "exact",
    *,
    model_path: str,
    max_tokens: int = MAX_TOKENS,
    hnsw_links: int = 32,
    hnsw_effort: int = 128,
    ivf_lists: int | None = None,
    ivf_probes: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Fills `output_dir`; returns what index.json says, with the recall against exact search for hnsw and ivf.

    `model_path` is what `search` loads when it is not told. In a process group all ranks call this, encode together,
    and rank 0 builds.
    """
    import torch.distributed as dist

    if kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    least = {"hnsw_links": (hnsw_links, 2), "hnsw_effort": (hnsw_effort, 1)}
    least |= {"ivf_lists": (ivf_lists or 1, 1), "ivf_probes": (ivf_probes or 1, 1)}
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise InputError(f"{name} must be at least {smallest}, got {value}")
    import_faiss()  # before the long part
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    vectors_NH = encode_texts(
        model, documents.texts, "document", output=folder / "embeddings.npy", fingerprint=documents.fingerprint,
        shard=True, max_tokens=max_tokens, progress="documents" if progress else None,
    )  # fmt: skip
    if dist.is_initialized():
        dist.barrier()  # rank 0 removes the file of embeddings, which every rank must have opened by then
    info: dict[str, Any] = {
        "kind": kind,
        "documents": len(documents),
        "hidden_size": model.hidden_size,
        "corpus_fingerprint": documents.fingerprint,
        "model": str(Path(model_path).resolve()) if Path(model_path).is_dir() else model_path,
        "model_from_here": os.path.relpath(model_path, folder) if Path(model_path).is_dir() else None,
        "model_fingerprint": model.fingerprint,
        "precision": getattr(model, "precision", "fp32"),
        "usage": {name: getattr(model, name) for name in USAGE},
    }
    if not dist.is_initialized() or dist.get_rank() == 0:
        (folder / "index.json").unlink(missing_ok=True)
        index = _new_index(vectors_NH, kind, hnsw_links, hnsw_effort, ivf_lists, ivf_probes)
        info |= _fill(index, vectors_NH, folder / "index.faiss", kind, progress)
        if documents.path.resolve() != (folder / "documents.jsonl").resolve():
            shutil.copyfile(documents.path, folder / "documents.jsonl")
        np.save(folder / "starts.npy", documents.starts)
        draft = folder / "index.json.draft"
        draft.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        draft.replace(folder / "index.json")
        for name in ("embeddings.npy", "embeddings.json"):
            (folder / name).unlink()
    if dist.is_initialized():
        dist.barrier()
    return info


def _new_index(
    vectors_NH: np.ndarray, kind: str, links: int, effort: int, lists: int | None, probes: int | None
) -> Any:
    """Empty, and trained where that is needed."""
    faiss = import_faiss()
    count, width = vectors_NH.shape
    if kind == "exact":
        return faiss.IndexFlatIP(width)
    if kind == "hnsw":
        graph = faiss.IndexHNSWFlat(width, links, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction, graph.hnsw.efSearch = max(effort, 40), effort
        return graph
    lists = min(lists or max(1, int(4 * count**0.5)), count)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = min(probes or max(1, lists // 8), lists)
    index.cp.min_points_per_centroid = 1  # a small corpus is no reason to warn
    sample = np.random.default_rng(0).permutation(count)[: 64 * lists]
    index.train(np.ascontiguousarray(vectors_NH[np.sort(sample)]))
    return index


def _fill(index: Any, vectors_NH: np.ndarray, path: Path, kind: str, progress: bool) -> dict[str, float]:
    faiss = import_faiss()
    step = 16384
    with tqdm(total=len(vectors_NH), desc="index", disable=None if progress else True) as bar:
        for start in range(0, len(vectors_NH), step):
            index.add(np.ascontiguousarray(vectors_NH[start : start + step]))
            bar.update(min(step, len(vectors_NH) - start))
    draft = path.with_suffix(".draft")
    faiss.write_index(index, str(draft))
    draft.replace(path)
    return {} if kind == "exact" else {"recall@10": recall(index, vectors_NH)}


def recall(index: Any, vectors_NH: np.ndarray, k: int = 10, queries: int = 1000) -> float:
    """The share of the k nearest documents that the index finds too, documents of the corpus being the queries."""
    rows = np.random.default_rng(0).permutation(len(vectors_NH))[:queries]
    sample = np.ascontiguousarray(vectors_NH[np.sort(rows)])
    k = min(k, len(vectors_NH))
    _, expected = nearest(sample, vectors_NH, k)
    _, found = index.search(sample, k)
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(expected.tolist(), found.tolist())]))


class Index:
    """An index on disk, ready to search."""

    def __init__(self, folder: str | Path):
        faiss = import_faiss()
        folder = Path(folder)
        if not (folder / "index.json").is_file():
            raise InputError(f"{folder}: no index (no index.json); python -m moe_retrieval.index builds one")
        self.folder = folder
        self.info = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self.documents = StoredDocuments(folder / "documents.jsonl", np.load(folder / "starts.npy"))
        self.vectors = faiss.read_index(str(folder / "index.faiss"))

    def load_model(self, path: str | None = None) -> Any:
        """The model that the index was made with, from where it then was or from `path`; another one is refused."""
        from moe_retrieval.model import load

        beside = self.info["model_from_here"] and self.folder / self.info["model_from_here"]
        moved = beside and not Path(self.info["model"]).is_dir() and beside.is_dir()
        try:
            model = load(path or (beside if moved else self.info["model"]), self.info["precision"])
        except InputError as error:
            raise error if path else InputError(f"{error}; --model names another place of the index's model") from None
        self.check(model)
        return with_usage(model, **self.info["usage"])

    def check(self, model: Any) -> None:
        if model.fingerprint != self.info["model_fingerprint"]:
            raise InputError(
                f"{self.folder} was made with another model ({self.info['model']}, {self.info['model_fingerprint']}; "
                f"this one is {model.fingerprint}): search with that one, or index again"
            )

    def search(self, queries_QH: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """-> scores_QK, rows_QK, the best first; -1 where an approximate index found no more."""
        return self.vectors.search(np.ascontiguousarray(queries_QH, dtype=np.float32), min(k, len(self.documents)))


def with_usage(model: Any, **changes: Any) -> Any:
    """The model with other lengths or prompts; None changes nothing."""
    from dataclasses import replace

    given = {name: value for name, value in changes.items() if value is not None}
    if given:
        model.settings = replace(model.settings, **given)
    return model


def open_corpus(name: str, data_dir: str | None = None) -> Documents:
    """A corpus.jsonl, or the documents of a data set."""
    from moe_retrieval.data import load

    return Documents(name) if Path(name).is_file() else load(name, data_dir).documents


def main(arguments: Sequence[str] | None = None) -> None:
    config = parse(IndexConfig, sys.argv[1:] if arguments is None else arguments, "python -m moe_retrieval.index")
    from moe_retrieval.distributed import main_first, running_world
    from moe_retrieval.model import load as load_model

    with running_world() as world:
        if not world.is_main:
            log.setLevel(logging.ERROR)
        with main_first(world):  # it may download what the others then find
            documents = open_corpus(config.corpus, config.data_dir)
            model = load_model(config.model, config.precision, world.device)
        with_usage(model, **{name: getattr(config, name) for name in USAGE})
        info = build_index(
            model, documents, config.output_dir, config.kind, model_path=config.model, max_tokens=config.max_tokens,
            hnsw_links=config.hnsw_links, hnsw_effort=config.hnsw_effort,
            ivf_lists=config.ivf_lists, ivf_probes=config.ivf_probes,
        )  # fmt: skip
        if world.is_main:
            print(f"{info['documents']} documents in {config.output_dir} ({info['kind']})")
            if "recall@10" in info:
                print(f"recall@10 against exact search: {info['recall@10']:.4f} (documents as queries)")
            print(f'search: python -m moe_retrieval.search --index {config.output_dir} "a question"')


if __name__ == "__main__":
    run_command(main)
