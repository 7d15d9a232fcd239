"""The end of a run: BM25, the untouched backbone and the trained model in one table, an index, and how to search."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_retrieval.config import SCRATCH, TrainConfig
from moe_retrieval.data.collection import Collection
from moe_retrieval.evaluation.metrics import Measures, evaluate_run
from moe_retrieval.evaluation.overview import Scored, mean_measures, overview
from moe_retrieval.evaluation.ranking import bm25_run, embeddings_file, has_embeddings, model_run
from moe_retrieval.evaluation.results import provenance, write_means, write_results
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
    config: TrainConfig, world: World, collections: Sequence[Collection], backbone: str, facts: dict[str, Any]
) -> dict[str, Any]:
    """Measures the model in the output directory on the test splits, and indexes the documents; all ranks share the
    encoding. -> the measures, of several collections their mean"""
    output = Path(config.output_dir)
    model = load(output, config.precision, world.device)
    trained = f"trained ({config.variant})"
    scored: list[Scored] = []
    tables: list[str] = []
    for collection in collections:
        folder = output if len(collections) == 1 else output / "datasets" / collection.name
        asked = collection.documents[0][1]
        if collection.held_out is None:
            if world.is_main:
                print(f"{collection.name} has no test split: nothing is measured")
        else:
            rows, written = measure(config, world, model, collection, folder, facts)
            scored.append(Scored(collection.name, collection.name, rows))
            tables.append(written)
            asked = next(iter(collection.queries(collection.held_out).values()))
            if world.is_main:
                write_card(output, model, backbone, collections, facts, tables)
        make_index(output, folder, model, collection, world, example_question(asked))
    if len(scored) > 1 and world.is_main:
        written = overview(scored)
        print(f"\n{written}")
        write_card(output, model, backbone, collections, facts, [written, *tables])
        write_means(output, scored, trained, {"training": facts})
    return mean_measures(scored, trained) if scored else {}


def write_card(
    output: Path, model: Model, backbone: str, collections: Sequence[Collection], facts: dict[str, Any],
    tables: Sequence[str],
) -> None:  # fmt: skip
    trained_on = ", ".join(collection.name for collection in collections)
    card = model_card(model.retriever, backbone, trained_on, facts, "\n\n".join(tables))
    write(output / "README.md", card.encode())


def measure(
    config: TrainConfig, world: World, model: Model, collection: Collection, folder: Path, facts: dict[str, Any]
) -> tuple[dict[str, Measures], str]:
    """-> what each system is worth, and the table: all of it in the process that says so"""
    split = str(collection.held_out)
    qrels = collection.qrels(split)
    rows: dict[str, Measures] = {}
    watch = Stopwatch(len(qrels) + len(collection.documents))
    sizes = f"{len(qrels)} queries, {len(collection.documents)} documents"
    trained, start = f"trained ({config.variant})", row_of_start(config.model)
    if world.is_main:
        print(f"\nmeasuring on the {split} split: {sizes}", flush=True)
        with watch.timing("BM25"):
            ranked = bm25_run(collection, split)
        rows["BM25"] = evaluate_run(qrels, ranked)
    if config.model != SCRATCH:
        untouched = load(config.model, config.precision, world.device).with_usage(**reading(model.usage))
        with watch.timing(start):
            ranked = model_run(untouched, collection, split)
        rows[start] = evaluate_run(qrels, ranked)
    resumed = world.is_main and has_embeddings(model, collection, output_dir=folder)
    with watch.timing(trained, resumed):
        run = model_run(model, collection, split, output_dir=folder)
    rows[trained] = evaluate_run(qrels, run)
    if not world.is_main:
        return rows, ""
    written = table(rows, [start] if start in rows else [], watch=watch)
    titled = f"{collection.name}, {split} split, whole corpus: {sizes}\n\n{written}"
    write_results(folder, run, rows[trained], provenance(model, collection, split, "full") | {"training": facts})
    print(f"\n{titled}\n")
    return rows, titled


def make_index(output: Path, folder: Path, model: Model, collection: Collection, world: World, question: str) -> None:
    """An index of the corpus in `folder`, from the embeddings that were just measured, and how to search it."""
    measured = embeddings_file(folder, collection)
    with sole_use(folder / "index", world):
        build_index(model, collection.documents, folder / "index", model_path=str(output), embeddings=measured)
    if world.is_main:
        if not any(measured.parent.iterdir()):
            measured.parent.rmdir()
        print(search_hint(folder, question))
