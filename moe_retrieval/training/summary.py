"""The end of a run: BM25, the untouched backbone and the trained model in one table, an index, and how to search."""

from pathlib import Path
from typing import Any

from moe_retrieval.config import SCRATCH, TrainConfig
from moe_retrieval.data.collection import Collection
from moe_retrieval.evaluation.metrics import Measures, evaluate_run
from moe_retrieval.evaluation.ranking import bm25_run, embeddings_file, has_embeddings, model_run
from moe_retrieval.evaluation.results import provenance, write_results
from moe_retrieval.evaluation.stopwatch import Stopwatch
from moe_retrieval.evaluation.table import table
from moe_retrieval.files import write
from moe_retrieval.models.backbones import find
from moe_retrieval.models.card import model_card
from moe_retrieval.models.loading import is_run
from moe_retrieval.models.usage import reading
from moe_retrieval.retrieval.hint import example_question, search_hint
from moe_retrieval.retrieval.index import build_index
from moe_retrieval.retrieval.model import Model, load
from moe_retrieval.training.distributed import World, sole_use


def row_of_start(backbone: str) -> str:
    """What the table calls that which was trained: an earlier run, in a second stage."""
    if backbone == SCRATCH or not is_run(find(backbone)):
        return "untouched backbone"
    return f"before ({backbone})"


def summarize(
    config: TrainConfig, world: World, collection: Collection, backbone: str, facts: dict[str, Any]
) -> dict[str, Any]:
    """Measures the model in the output directory on the test split; all ranks share the encoding."""
    output = Path(config.output_dir)
    split = collection.held_out
    model = load(output, config.precision, world.device)
    if split is None:
        if world.is_main:
            print(f"{collection.name} has no test split: nothing is measured")
        make_index(output, model, collection, world, example_question(collection.documents[0][1]))
        return {}
    qrels = collection.qrels(split)
    rows: dict[str, Measures] = {}
    watch = Stopwatch(len(qrels) + len(collection.documents))
    trained = f"trained ({config.variant})"
    start = row_of_start(backbone)
    if world.is_main:
        sizes = f"{len(qrels)} queries, {len(collection.documents)} documents"
        print(f"\nmeasuring on the {split} split: {sizes}", flush=True)
        with watch.timing("BM25"):
            ranked = bm25_run(collection, split)
        rows["BM25"] = evaluate_run(qrels, ranked)
    if backbone != SCRATCH:
        untouched = load(config.model, config.precision, world.device).with_usage(**reading(model.usage))
        with watch.timing(start):
            ranked = model_run(untouched, collection, split)
        rows[start] = evaluate_run(qrels, ranked)
    resumed = world.is_main and has_embeddings(model, collection, output_dir=output)
    with watch.timing(trained, resumed):
        run = model_run(model, collection, split, output_dir=output)
    measures = rows[trained] = evaluate_run(qrels, run)
    if world.is_main:
        written = table(rows, [start] if start in rows else [], watch=watch)
        write_results(output, run, measures, provenance(model, collection, split, "full") | {"training": facts})
        title = f"{collection.name}, {split} split, whole corpus: {sizes}"
        card = model_card(model.retriever, backbone, collection.name, facts, f"{title}\n\n{written}")
        write(output / "README.md", card.encode())
        print(f"\n{title}\n\n{written}\n")
    make_index(output, model, collection, world, example_question(next(iter(collection.queries(split).values()))))
    return measures.means


def make_index(output: Path, model: Model, collection: Collection, world: World, question: str) -> None:
    """An index of the corpus below the model, from the embeddings that were just measured, and how to search it."""
    folder = output / "index"
    measured = embeddings_file(output, collection)
    with sole_use(folder, world):
        build_index(model, collection.documents, folder, model_path=str(output), embeddings=measured)
    if world.is_main:
        if not any(measured.parent.iterdir()):
            measured.parent.rmdir()
        print(search_hint(output, question))
