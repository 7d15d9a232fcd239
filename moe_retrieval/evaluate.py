"""python -m moe_retrieval.evaluate: a model's ranking of a collection, measured.

Three settings that are never mixed: `--setting full` ranks the whole corpus (with `--split test` the headline, with
`--split train` the fit), `--setting gold-pool` ranks only what answers some query of the split.
"""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from moe_retrieval.bm25 import BM25
from moe_retrieval.config import parse, run_command
from moe_retrieval.data import Collection
from moe_retrieval.data import load as load_collection
from moe_retrieval.data.records import Texts
from moe_retrieval.encode import MAX_TOKENS, encode_texts
from moe_retrieval.errors import InputError
from moe_retrieval.exact import nearest
from moe_retrieval.index import USAGE, with_usage
from moe_retrieval.metrics import Measures, Run, evaluate_run, read_run, table, write_run

log = logging.getLogger("moe_retrieval")

SETTINGS = ("full", "gold-pool")
DEPTH = 1000
"""Documents of a ranking that are kept"""


@dataclass
class EvaluateConfig:
    """Ranks a collection's documents for the queries of a split, and measures the ranking beside BM25's."""

    model: str
    """A run, a Hugging Face directory, an alias (minilm), or a repository of the hub."""
    dataset: str = "docs"
    """docs, a BEIR data set by name, a BEIR-format folder, or a JSON-lines file of pairs, triplets or lists."""
    split: str = "test"
    """Whose queries are asked."""
    setting: Literal["full", "gold-pool"] = "full"
    """Rank all documents, or only those that answer some query of the split."""
    output_dir: str | None = None
    """Where metrics.json, run.trec and embeddings go, with which a run that was stopped goes on; None is nowhere."""
    data_dir: str | None = None
    """Where data sets lie by name; besides, $MOE_RETRIEVAL_DATA is looked at."""
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
    against: str | None = None
    """A run.trec of another model on the same split: the table then tests the difference."""
    no_bm25: bool = False
    """No BM25 in the table."""


def candidate_rows(collection: Collection, split: str, setting: str) -> Sequence[int]:
    """The documents that are ranked."""
    if setting not in SETTINGS:
        raise InputError(f"setting must be one of {', '.join(SETTINGS)}; got {setting!r}")
    if setting == "full":
        return range(len(collection.documents))
    answers = {
        document for judged in collection.qrels(split).values() for document, score in judged.items() if score > 0
    }
    rows = sorted(row for row in map(collection.documents.row, answers) if row is not None)
    if not rows:
        raise InputError(f"the split {split} of {collection.name} has no document that answers a query")
    return rows


def model_run(
    model: Any,
    collection: Collection,
    split: str = "test",
    setting: str = "full",
    *,
    output_dir: str | Path | None = None,
    max_tokens: int = MAX_TOKENS,
    shard: bool = True,
    progress: bool = True,
) -> Run:
    """The ranking of the best 1,000 documents for each query of a split.

    In a process group all ranks call this and share the work, unless `shard` is False. A document that has the
    query's own id is left out, as in BEIR, unless it is judged relevant.
    """
    candidates = candidate_rows(collection, split, setting)
    queries = collection.queries(split)
    stored = None if output_dir is None else Path(output_dir) / "embeddings" / f"{collection.fingerprint}.npy"
    options: dict[str, Any] = {"shard": shard, "max_tokens": max_tokens}
    if setting == "full":
        print_id = collection.documents.fingerprint
        documents_NH = encode_texts(
            model, collection.documents.texts, "document", output=stored, fingerprint=print_id,
            progress="documents" if progress else None, **options,
        )  # fmt: skip
    else:
        pool = Texts(collection.documents, candidates)
        documents_NH = encode_texts(model, pool, "document", progress="documents" if progress else None, **options)
    queries_QH = encode_texts(
        model, list(queries.values()), "query", progress="queries" if progress else None, **options
    )
    device = getattr(model, "device", "cpu")
    scores_QK, rows_QK = nearest(queries_QH, documents_NH, DEPTH + 1, shard=shard, device=device)
    return _as_run(collection, split, scores_QK, [[candidates[place] for place in row] for row in rows_QK.tolist()])


def bm25_run(collection: Collection, split: str = "test", setting: str = "full") -> Run:
    """BM25's ranking of the same documents."""
    candidates = candidate_rows(collection, split, setting)
    index = BM25(Texts(collection.documents, candidates))
    found = index.search(collection.queries(split).values(), DEPTH + 1)
    rows = [[candidates[place] for place in places.tolist()] for _, places in found]
    return _as_run(collection, split, [scores for scores, _ in found], rows)


def _as_run(collection: Collection, split: str, scores: Any, rows: list[list[int]]) -> Run:
    run: Run = {}
    names: dict[int, str] = {}
    for (query, judged), scores_K, rows_K in zip(collection.qrels(split).items(), scores, rows):
        found = {}
        for score, row in zip(np.asarray(scores_K).tolist(), rows_K):
            name = names.get(row) or names.setdefault(row, collection.documents.id(row))
            if name != query or judged.get(name, 0) > 0:
                found[name] = score
        run[query] = dict(list(found.items())[:DEPTH])
    return run


def evaluate_model(
    model: Any,
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
    if output_dir is not None and _rank() == 0:
        write_results(Path(output_dir), run, measures, provenance(model, collection, split, setting))
    return measures.means


def provenance(model: Any, collection: Collection, split: str, setting: str) -> dict[str, Any]:
    import pytrec_eval
    import torch

    import kernels

    return {
        "model": model.fingerprint,
        "precision": getattr(model, "precision", None),
        "query_length": model.query_length,
        "doc_length": model.doc_length,
        "query_prompt": model.query_prompt,
        "doc_prompt": model.doc_prompt,
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
    """run.trec and metrics.json: the measures, flat, and under "run" where they come from."""
    folder.mkdir(parents=True, exist_ok=True)
    write_run(folder / "run.trec", run)
    content = json.dumps({**measures.means, "run": origin}, indent=2)
    (folder / "metrics.json").write_text(content + "\n", encoding="utf-8")


def _rank() -> int:
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """What the command does; returns the measures of the model."""
    from moe_retrieval.distributed import main_first, running_world
    from moe_retrieval.model import load as load_model

    with running_world() as world:
        if not world.is_main:
            log.setLevel(logging.ERROR)
        with main_first(world):  # it may download what the others then find
            collection = load_collection(config.dataset, config.data_dir)
            candidate_rows(collection, config.split, config.setting)
            other = read_run(config.against) if config.against else None
            usage = {name: getattr(config, name) for name in USAGE}
            model = with_usage(load_model(config.model, config.precision, world.device), **usage)
        run = model_run(
            model,
            collection,
            config.split,
            config.setting,
            output_dir=config.output_dir,
            max_tokens=config.max_tokens,
        )
        qrels = collection.qrels(config.split)
        measures = evaluate_run(qrels, run)
        if world.is_main:
            origin = {
                **provenance(model, collection, config.split, config.setting),
                "processes": world.size,
                "config": asdict(config),
            }
            if config.output_dir:
                write_results(Path(config.output_dir), run, measures, origin)
            rows = {}
            if not config.no_bm25:
                rows["BM25"] = evaluate_run(qrels, bm25_run(collection, config.split, config.setting))
            if other is not None:
                rows[str(config.against)] = evaluate_run(qrels, other)
            rows[config.model] = measures
            print(
                f"{collection.name} ({collection.fingerprint}), {config.split} split, {config.setting} setting: "
                f"{origin['queries']} queries, {origin['documents']} documents\n"
            )
            print(table(rows, str(config.against) if config.against else None))
        return measures.means


def main(arguments: Sequence[str] | None = None) -> None:
    evaluate(
        parse(EvaluateConfig, sys.argv[1:] if arguments is None else arguments, "python -m moe_retrieval.evaluate")
    )


if __name__ == "__main__":
    run_command(main)
