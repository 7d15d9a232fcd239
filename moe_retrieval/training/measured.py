"""What is measured of each system of a comparison, once: a call that goes on finds what an earlier one left."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from moe_retrieval.config import TrainConfig
from moe_retrieval.data.collection import Collection
from moe_retrieval.errors import InputError
from moe_retrieval.evaluation.findings import FIT
from moe_retrieval.evaluation.metrics import evaluate_run
from moe_retrieval.evaluation.ranking import bm25_run, embeddings_file, model_run
from moe_retrieval.evaluation.results import kept_run, provenance, write_results
from moe_retrieval.evaluation.speed import measure_speed
from moe_retrieval.evaluation.systems import Measured
from moe_retrieval.files import read_object, write_json
from moe_retrieval.models.usage import reading
from moe_retrieval.retrieval.model import Model
from moe_retrieval.training import checkpoint
from moe_retrieval.training.resumption import checkpoints
from moe_retrieval.training.validation import by_hash

FIT_QUERIES = 1000
"""Of the train split: all of SciFact's, and enough of any other's"""


def with_fit(collection: Collection) -> tuple[Collection, tuple[str, ...]]:
    """-> the collection, with no more queries of its train split than are asked, and the splits to measure on."""
    held_out = str(collection.held_out)
    if FIT not in collection.splits:
        return collection, (held_out,)
    judged = collection.qrels(FIT)
    chosen = set(by_hash(judged)[:FIT_QUERIES])
    part = {query: answers for query, answers in judged.items() if query in chosen}
    return replace(collection, all_qrels={**collection.all_qrels, FIT: part}), (held_out, FIT)


def measure_bm25(collection: Collection, splits: Sequence[str]) -> Measured:
    return Measured({split: evaluate_run(collection.qrels(split), bm25_run(collection, split)) for split in splits}, {})


def measure_model(model: Model, collection: Collection, splits: Sequence[str], folder: Path) -> Measured:
    """By what is in the folder, where that is of this model on this collection."""
    measures = {}
    for split in splits:
        kept, qrels = folder / "fit" if split == FIT else folder, collection.qrels(split)
        origin = provenance(model, collection, split, "full")
        run = kept_run(kept, origin)
        print(f"{folder.name}, {split} split: {'ranking' if run is None else 'ranked before'}", flush=True)
        is_new = run is None
        if run is None:
            run = model_run(model, collection, split, output_dir=folder)
        measures[split] = evaluate_run(qrels, run)
        if is_new:
            write_results(kept, run, measures[split], origin)
    shutil.rmtree(embeddings_file(folder, collection).parent, ignore_errors=True)
    total, active = model.retriever.count_parameters()
    return Measured(measures, {"parameters": total, "active": active, **_speed(model, collection, splits[0], folder)})


def _speed(model: Model, collection: Collection, split: str, folder: Path) -> dict[str, float]:
    """A table that is made again says the same."""
    path, of = folder / "speed.json", {"model": model.fingerprint, "precision": model.precision, **reading(model.usage)}
    with suppress(InputError):
        before = read_object(path)
        if before.pop("of", None) == of:
            return before
    speed = measure_speed(model, collection, split)
    write_json(path, {**speed, "of": of})
    return speed


def training_costs(run: TrainConfig) -> dict[str, float]:
    """By its newest checkpoint; that of an older version says less."""
    newest = checkpoint.find_all(checkpoints(run))[-1:]
    progress = checkpoint.read_state(newest[0])["progress"] if newest else {}
    names = {"steps": "step", "training_seconds": "seconds", "peak_bytes": "peak_memory"}
    return {cost: progress[name] for cost, name in names.items() if progress.get(name)}
