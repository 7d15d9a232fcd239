"""The end of a run: BM25, the untouched backbone and the trained model in one table, an index, and how to search."""

import shlex
from pathlib import Path
from typing import Any

from moe_retrieval.card import model_card
from moe_retrieval.config import TrainConfig
from moe_retrieval.data.collection import Collection
from moe_retrieval.distributed import World, barrier
from moe_retrieval.evaluate import bm25_run, model_run, provenance, with_usage, write_results
from moe_retrieval.export import write
from moe_retrieval.index import build_index
from moe_retrieval.metrics import Measures, evaluate_run, table
from moe_retrieval.model import Model, load
from moe_retrieval.preparation import SCRATCH

QUESTION = "stable sort of a tensor along a dimension"

BACKBONE = "untouched backbone"


def summarize(
    config: TrainConfig, world: World, collection: Collection, backbone: str, facts: dict[str, Any]
) -> dict[str, Any]:
    """Measures the model in the output directory on the test split; all ranks share the encoding."""
    output = Path(config.output_dir)
    split = next((name for name in ("test", "dev") if name in collection.splits), None)
    model = load(output, config.precision, world.device)
    if split is None:
        if world.is_main:
            print(f"{collection.name} has no test split: nothing is measured")
        make_index(output, model, collection, world)
        return {}
    qrels = collection.qrels(split)
    rows: dict[str, Measures] = {}
    if world.is_main:
        rows["BM25"] = evaluate_run(qrels, bm25_run(collection, split))
    if backbone != SCRATCH:
        rows[BACKBONE] = evaluate_run(qrels, model_run(untouched(config, model, world), collection, split))
    run = model_run(model, collection, split, output_dir=output)
    measures = rows[f"trained ({config.variant})"] = evaluate_run(qrels, run)
    if world.is_main:
        written = table(rows, BACKBONE if BACKBONE in rows else None)
        write_results(output, run, measures, provenance(model, collection, split, "full") | {"training": facts})
        sizes = f"{len(qrels)} queries, {len(collection.documents)} documents"
        title = f"{collection.name}, {split} split, whole corpus: {sizes}"
        card = model_card(model.retriever, backbone, collection.name, facts, f"{title}\n\n{written}")
        write(output / "README.md", card.encode())
        print(f"\n{title}\n\n{written}\n")
    make_index(output, model, collection, world)
    return measures.means


def untouched(config: TrainConfig, model: Model, world: World) -> Model:
    """The backbone before training, used as the trained model is."""
    settings = model.settings
    return with_usage(
        load(config.model, config.precision, world.device),
        query_length=settings.query_length,
        doc_length=settings.doc_length,
        query_prompt=settings.query_prompt,
        doc_prompt=settings.doc_prompt,
    )


def make_index(output: Path, model: Model, collection: Collection, world: World) -> None:
    """An index of the corpus below the model, from the embeddings that were just measured, and how to search it."""
    folder = output / "index"
    measured = output / "embeddings" / collection.fingerprint
    if world.is_main:
        folder.mkdir(exist_ok=True)
        for suffix in (".npy", ".json"):
            if measured.with_suffix(suffix).is_file():
                measured.with_suffix(suffix).replace(folder / f"embeddings{suffix}")
    barrier()
    build_index(model, collection.documents, folder, model_path=str(output))
    if world.is_main:
        measured.parent.rmdir()
        print(f"search:  python -m moe_retrieval.search --index {shlex.quote(str(folder))} {shlex.quote(QUESTION)}")
