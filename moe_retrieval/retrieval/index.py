"""An index on disk: made of a model's embeddings of a corpus, and opened to be searched.

index.faiss         the vectors: exact, HNSW or IVF
documents.jsonl     ids, titles and texts, with starts.npy, where each begins and its checksum
index.json          which model, how it was used, which corpus, checksums; written last: half a folder is no index
"""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from moe_retrieval import checksums
from moe_retrieval.data.records import Documents, StoredDocuments
from moe_retrieval.errors import InputError
from moe_retrieval.files import check_space
from moe_retrieval.models.usage import reading
from moe_retrieval.progress import Meter
from moe_retrieval.retrieval.backend_settings import BackendSettings
from moe_retrieval.retrieval.backends import fitting, measured_recall, new_backend
from moe_retrieval.retrieval.embedder import Embedder
from moe_retrieval.retrieval.encode import MAX_TOKENS, encode_texts
from moe_retrieval.retrieval.exact import import_faiss
from moe_retrieval.retrieval.model import Model, load
from moe_retrieval.retrieval.resident import resident

ADDED_TOGETHER = 16384
"""Vectors"""


def build_index(
    model: Embedder,
    documents: Documents,
    output_dir: str | Path,
    settings: BackendSettings | None = None,
    *,
    model_path: str,
    embeddings: str | Path | None = None,
    max_tokens: int = MAX_TOKENS,
    progress: bool = True,
) -> dict[str, Any]:
    """Fills `output_dir`; returns what index.json says, with the recall against exact search for hnsw and ivf.

    `model_path` is what `search` loads when it is not told. `embeddings` is the file that `encode_texts` writes to
    meanwhile, in `output_dir` by default; what it holds already is not computed again, and it is removed at the end.
    In a process group all ranks call this, encode together, and rank 0 builds.
    """
    settings = fitting(settings or BackendSettings(), len(documents))
    import_faiss()  # before the long part
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    stored = Path(embeddings or folder / "embeddings.npy")
    vectors = 4 * model.hidden_size * len(documents)
    check_space(folder, documents.path.stat().st_size + (vectors if stored.exists() else 2 * vectors))
    vectors_NH = encode_texts(
        model, documents.texts, "document", output=stored, fingerprint=documents.fingerprint,
        shard=True, max_tokens=max_tokens, progress="documents" if progress else None,
    )  # fmt: skip
    if dist.is_initialized():
        dist.barrier()  # rank 0 removes the file of embeddings, which every rank must have opened by then
    info: dict[str, Any] = {
        "kind": settings.kind,
        "documents": len(documents),
        "hidden_size": model.hidden_size,
        "corpus_fingerprint": documents.fingerprint,
        "model": str(Path(model_path).resolve()) if Path(model_path).is_dir() else model_path,
        "model_from_here": os.path.relpath(model_path, folder) if Path(model_path).is_dir() else None,
        "model_fingerprint": model.fingerprint,
        "precision": model.precision,
        "usage": reading(model.usage),
    }
    if not dist.is_initialized() or dist.get_rank() == 0:
        (folder / "index.json").unlink(missing_ok=True)
        with Meter("index" if progress else None, len(documents), "documents") as meter:
            backend = new_backend(vectors_NH, settings)
            _fill(backend, vectors_NH, folder / "index.faiss", meter)
        if settings.kind != "exact":
            info["recall@10"] = measured_recall(backend, vectors_NH, settings.kind)
        if documents.path.resolve() != (folder / "documents.jsonl").resolve():
            shutil.copyfile(documents.path, folder / "documents.jsonl")
        np.save(folder / "starts.npy", np.stack([documents.starts, documents.sums]))
        info["files"] = {name: checksums.of_file(folder / name) for name in ("index.faiss", "starts.npy")}
        checksums.write_sealed(folder / "index.json", info)
        for file in (stored, stored.with_suffix(".json")):
            file.unlink()
    if dist.is_initialized():
        dist.barrier()
    return info


def _fill(backend: Any, vectors_NH: np.ndarray, path: Path, meter: Meter) -> None:
    for start in range(0, len(vectors_NH), ADDED_TOGETHER):
        added = np.ascontiguousarray(vectors_NH[start : start + ADDED_TOGETHER])
        backend.add(added)
        meter.advance(len(added))
    draft = path.with_suffix(".draft")
    import_faiss().write_index(backend, str(draft))
    draft.replace(path)


class Index:
    """An index on disk, ready to search: its folder, or the run that has it."""

    def __init__(self, folder: str | Path):
        faiss = import_faiss()
        folder = Path(folder)
        if not (folder / "index.json").is_file() and (folder / "index" / "index.json").is_file():
            folder = folder / "index"  # a run's own
        if not (folder / "index.json").is_file():
            raise InputError(f"{folder}: no index (no index.json); python -m moe_retrieval.index builds one")
        self.folder = folder
        self.info = checksums.read_sealed(folder / "index.json")
        checksums.check_files(folder, self.info["files"])
        self.documents = StoredDocuments(folder / "documents.jsonl", *np.load(folder / "starts.npy"))
        self.vectors = resident(faiss.read_index(str(folder / "index.faiss")), self.info["kind"])

    def load_model(self, path: str | None = None) -> Model:
        """The model that the index was made with, from where it then was or from `path`; another one is refused."""
        beside = self.info["model_from_here"] and self.folder / self.info["model_from_here"]
        moved = beside and not Path(self.info["model"]).is_dir() and beside.is_dir()
        try:
            model = load(path or (beside if moved else self.info["model"]), self.info["precision"])
        except InputError as error:
            raise error if path else InputError(f"{error}; --model names another place of the index's model") from None
        self.check(model)
        return model.with_usage(**self.info["usage"])

    def check(self, model: Embedder) -> None:
        if model.fingerprint != self.info["model_fingerprint"]:
            raise InputError(
                f"{self.folder} was made with another model ({self.info['model']}, {self.info['model_fingerprint']}; "
                f"this one is {model.fingerprint}): search with that one, or index again"
            )

    def search(self, queries_QH: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """-> scores_QK, rows_QK, the best first; -1 where an approximate index found no more."""
        return self.vectors.search(np.ascontiguousarray(queries_QH, dtype=np.float32), min(k, len(self.documents)))
