"""The application on the device, shortly: training in each precision, GradCache, resuming, ranking, an index, ranks.

    python -m bench.gpu.application OUTPUT.jsonl [--only TEXT] [--small]

It shows that everything runs and learns; what it is worth, no run of seconds shows. Data and model are made here, since
the machine may have no network. What needs a package that is not there says so, and does not count as failed.
"""

import json
import math
import random
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.gpu import saved
from bench.harness import processes
from moe_retrieval import data
from moe_retrieval.config import TrainConfig
from moe_retrieval.training import distributed, loop

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
DOCUMENTS, QUERIES = 600, 240
SYLLABLES = ["ba", "de", "fi", "go", "lu", "mar", "nes", "pol", "ri", "tan", "vek", "zo"]
LIMIT = 90.0
"""Seconds that ranks may take."""


def write_collection(folder: Path) -> Path:
    """In BEIR's format: a query has three of the ten words of the document that answers it."""
    draw = random.Random(0)
    words = sorted({"".join(draw.choices(SYLLABLES, k=3)) for _ in range(900)})
    texts = [draw.sample(words, 10) for _ in range(DOCUMENTS)]
    (folder / "qrels").mkdir(parents=True)
    corpus = [json.dumps({"_id": f"d{i}", "title": "", "text": " ".join(text)}) for i, text in enumerate(texts)]
    queries = [
        json.dumps({"_id": f"q{i}", "text": " ".join(draw.sample(texts[i * DOCUMENTS // QUERIES], 3))})
        for i in range(QUERIES)
    ]
    (folder / "corpus.jsonl").write_text("\n".join(corpus) + "\n", encoding="utf-8")
    (folder / "queries.jsonl").write_text("\n".join(queries) + "\n", encoding="utf-8")
    for split, own in {"train": range(0, QUERIES, 2), "test": range(1, QUERIES, 2)}.items():
        rows = [f"q{i}\td{i * DOCUMENTS // QUERIES}\t1" for i in own]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n")
    return folder


class Application:
    """Its cases; each run of training is a folder that later cases use."""

    def __init__(self, folder: Path, small: bool):
        self.folder, self.steps = folder, 4 if small else 20
        self.collection = write_collection(folder / "data")
        shape = dict(hidden=384, num_layers=6, heads=12, ff=1536)
        if small:
            shape = dict(hidden=48, num_layers=2, heads=4, ff=96)
        self.settings: dict[str, Any] = shape | dict(
            model="scratch", vocab_size=400, dataset=str(self.collection), no_eval=True
        )
        self.settings |= dict(batch_size=16 if small else 64, eval_every=0, save_every=0, backend="auto")

    def config(self, name: str, **settings: Any) -> TrainConfig:
        given = self.settings | dict(output_dir=str(self.folder / name), max_steps=self.steps) | settings
        return TrainConfig(**given)

    def train(self, name: str, **settings: Any) -> dict[str, Any]:
        config = self.config(name, **settings)
        loop.train(config)
        return losses(Path(config.output_dir), config.max_steps)

    def resume(self) -> dict[str, Any]:
        """Another ten steps of a run, which goes on from its checkpoint."""
        more = self.steps + 10
        found = self.train("moe bf16", variant="moe", precision="bf16", max_steps=more)
        assert found["steps"] == more, found
        return found

    def evaluate(self) -> dict[str, Any]:
        """The ranking of the device against all inner products, sorted by numpy. The measures are pytrec_eval's, which
        is not everywhere; that the answer is the first is counted here."""
        need_faiss()
        import moe_retrieval
        from moe_retrieval.evaluation.ranking import model_run

        model = moe_retrieval.load(self.folder / "moe bf16", precision="bf16")
        collection = data.load(self.collection)
        run = model_run(model, collection, "test", progress=False)
        queries = collection.queries("test")
        documents_NH = model.encode_document(list(collection.documents.texts))
        scores_QN = model.encode_query(list(queries.values())) @ documents_NH.T
        names = [collection.documents[row][0] for row in range(len(collection.documents))]
        for query, scores_N in zip(queries, scores_QN):
            first = max(run[query], key=run[query].__getitem__)
            assert scores_N[names.index(first)] >= scores_N.max() - 1e-2, (query, first)
        firsts = {query: max(ranked, key=ranked.__getitem__) for query, ranked in run.items()}
        answered = np.mean([firsts[query] in judged for query, judged in collection.qrels("test").items()])
        return {"answered": float(answered), "device": str(model.device)}

    def index(self) -> dict[str, Any]:
        """Built, and searched for a document's own words."""
        need_faiss()
        import moe_retrieval
        from moe_retrieval.retrieval.index import Index, build_index

        path = self.folder / "moe bf16"
        model, documents = moe_retrieval.load(path, precision="bf16"), data.load(self.collection).documents
        build_index(model, documents, self.folder / "index", model_path=str(path), progress=False)
        _, rows_QK = Index(self.folder / "index").search(model.encode_document([documents.texts[5]]), 3)
        assert rows_QK[0, 0] == 5, rows_QK
        return {"documents": len(documents)}

    def ranks(self, world: int, backend: str) -> dict[str, Any]:
        """`world` processes on this one device."""
        config = self.config(f"{world} ranks {backend}", variant="moe", precision="bf16")
        kind = torch.device("cuda" if backend == "nccl" else "cpu")  # by which the starter chooses the backend
        processes.run(train_on_rank, world, 1, kind, asdict(config), limit=LIMIT)
        return losses(Path(config.output_dir), config.max_steps)


def losses(output: Path, steps: int) -> dict[str, Any]:
    events = [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [event["loss"] for event in events if "loss" in event]
    assert found, "no loss was logged"
    assert all(map(math.isfinite, found)), found
    return {"steps": max(event.get("step", 0) for event in events), "first": found[0], "last": found[-1]}


def train_on_rank(_: torch.device, config: dict[str, Any]) -> None:
    """On the one device that there is, whatever the rank."""
    distributed._device = lambda rank: DEVICE
    loop.train(TrainConfig(**config))


def cases(application: Application) -> dict[str, Callable[[], dict[str, Any]]]:
    train = application.train
    return {
        "train moe bf16": partial(train, "moe bf16", variant="moe", precision="bf16"),
        "train moe fp16": partial(train, "moe fp16", variant="moe", precision="fp16"),
        "train moe fp32": partial(train, "moe fp32", variant="moe", precision="fp32"),
        "train sb-moe bf16": partial(train, "sb-moe bf16", variant="sb-moe", precision="bf16"),
        "train dense bf16 with dropout": partial(train, "dense", variant="dense", precision="bf16", dropout=0.1),
        "GradCache": partial(train, "cached", variant="moe", precision="bf16", chunk_size=8),
        "resume": application.resume,
        "evaluate": application.evaluate,
        "index and search": application.index,
        "two ranks on one device, gloo": partial(application.ranks, 2, "gloo"),
        "one rank, NCCL": partial(application.ranks, 1, "nccl") if DEVICE.type == "cuda" else needs_a_gpu,
    }


def need_faiss() -> None:
    try:
        import_module("faiss")
    except ImportError:
        raise saved.Skipped("faiss is not importable") from None


def needs_a_gpu() -> dict[str, Any]:
    raise saved.Skipped("NCCL needs a GPU")


def main() -> None:
    options = saved.parser(__doc__).parse_args()
    kept = saved.cases_of(options)
    with tempfile.TemporaryDirectory() as folder:
        for name, call in cases(Application(Path(folder), options.small)).items():
            kept.run(name, call)
    kept.end()


if __name__ == "__main__":
    main()
