"""What an evaluation leaves: the measures of a model's ranking, and where they come from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import kernels
from moe_retrieval import checksums
from moe_retrieval.data import Collection
from moe_retrieval.errors import InputError
from moe_retrieval.evaluation.metrics import Measures, evaluate_run
from moe_retrieval.evaluation.overview import Scored, mean_measures
from moe_retrieval.evaluation.ranking import candidate_rows, model_run
from moe_retrieval.evaluation.runs import Run, read_run, write_run
from moe_retrieval.files import read_json, write_json
from moe_retrieval.models.usage import reading
from moe_retrieval.retrieval.embedder import Embedder


def evaluate_model(
    model: Embedder,
    collection: Collection,
    split: str = "test",
    setting: str = "full",
    output_dir: str | Path | None = None,
    **options: Any,
) -> dict[str, float]:
    """The measures of a model's ranking, {"NDCG@10": 0.645, ...}; with `output_dir`, also as files there.

    `options` are those of `model_run`. In a process group every rank gets the measures, and rank 0 writes.
    """
    run = model_run(model, collection, split, setting, output_dir=output_dir, **options)
    measures = evaluate_run(collection.qrels(split), run)
    if output_dir is not None and (not dist.is_initialized() or dist.get_rank() == 0):
        write_results(Path(output_dir), run, measures, provenance(model, collection, split, setting))
    return measures.means


def provenance(model: Embedder, collection: Collection, split: str, setting: str) -> dict[str, Any]:
    import pytrec_eval

    return {
        "model": model.fingerprint,
        "precision": model.precision,
        **reading(model.usage),
        "dataset": collection.name,
        "dataset_fingerprint": collection.fingerprint,
        "split": split,
        "setting": setting,
        "queries": len(collection.qrels(split)),
        "documents": len(candidate_rows(collection, split, setting)),
        "versions": {
            "moe_retrieval": kernels.__version__,
            "torch": torch.__version__,
            "pytrec_eval": pytrec_eval.__version__,
        },
    }


def write_results(folder: Path, run: Run, measures: Measures, origin: dict[str, Any]) -> None:
    """run.trec and metrics.json, which has the checksum of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "run.trec"
    write_run(written, run)
    write_metrics(folder, measures.means, origin | {written.name: checksums.of_file(written)})


def kept_run(folder: Path, origin: dict[str, Any]) -> Run | None:
    """The run of an earlier `write_results` in this folder, if it is whole and of the same origin."""
    before = read_origin(folder)
    if any(before.get(name) != value for name, value in origin.items()):
        return None
    try:
        checksums.check_files(folder, {"run.trec": before.get("run.trec", "")})
        return read_run(folder / "run.trec")
    except InputError:
        return None


def read_origin(folder: Path) -> dict[str, Any]:
    """What metrics.json says that its measures are of; nothing where there is none, or another's."""
    try:
        origin = read_json(folder / "metrics.json")["run"]
    except (InputError, TypeError, KeyError):
        return {}
    return origin if isinstance(origin, dict) else {}


def write_metrics(folder: Path, means: dict[str, float], origin: dict[str, Any]) -> None:
    """metrics.json: the measures, flat, and under "run" where they come from."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "metrics.json", {**means, "run": origin})


def write_means(folder: Path, scored: Sequence[Scored], system: str, origin: dict[str, Any]) -> None:
    """metrics.json of several collections: the mean, and under "run" what each has; their own files lie below."""
    each = {one.collection: one.rows[system].means for one in scored}
    write_metrics(folder, mean_measures(scored, system), origin | {"datasets": each})


def report(means: dict[str, float], output_dir: str | None, origin: dict[str, Any]) -> None:
    """To the terminal, and as metrics.json."""
    for name, value in means.items():
        print(f"{name:10} {value:.4f}")
    if output_dir is not None:
        write_metrics(Path(output_dir), means, origin)
