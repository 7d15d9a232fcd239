"""python -m moe_retrieval.evaluate: a model's ranking of a collection, measured."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from moe_retrieval.bounds import check_bounds, flag
from moe_retrieval.cli import parse, run_command
from moe_retrieval.retrieval.limits import MAX_TOKENS


@dataclass
class EvaluateConfig:
    """Ranks a collection's documents for the queries of a split, and measures the ranking beside BM25's."""

    model: str
    """A run, a Hugging Face directory, an alias (minilm), or a repository of the hub."""
    dataset: str = "docs"
    """docs, a BEIR data set by name, a BEIR-format folder, or JSON lines of pairs {"query": ..., "positive": ...},
    triplets or lists; examples/data has one of each."""
    split: str = "test"
    """Whose queries are asked."""
    setting: Literal["full", "gold-pool"] = "full"
    """Rank all documents, or only those that answer some query of the split."""
    output_dir: str | None = None
    """Where metrics.json, run.trec and embeddings go, with which a run that was stopped goes on; None is nowhere."""
    data_dir: str | None = None
    """Where data sets lie by name, besides $MOE_RETRIEVAL_DATA."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """The type that is computed in; auto is bf16 where that is faster, else fp32."""
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

    def __post_init__(self) -> None:
        check_bounds(self, {"max_tokens": (1, None)}, flag)


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """What the command does; returns the measures of the model."""
    from moe_retrieval import data
    from moe_retrieval.evaluation.comparison import read_other
    from moe_retrieval.evaluation.metrics import evaluate_run
    from moe_retrieval.evaluation.ranking import bm25_run, candidate_rows, has_embeddings, model_run
    from moe_retrieval.evaluation.results import provenance, write_results
    from moe_retrieval.evaluation.stopwatch import Stopwatch
    from moe_retrieval.evaluation.table import table
    from moe_retrieval.models.usage import reading
    from moe_retrieval.retrieval.model import load
    from moe_retrieval.training.distributed import main_first, running_world, sole_use

    with running_world() as world, sole_use(config.output_dir, world):
        with main_first(world):  # it may download what the others then find
            collection = data.load(config.dataset, config.data_dir)
            documents = len(candidate_rows(collection, config.split, config.setting))
            other = config.against and read_other(config.against, collection, config.split, config.setting)
            model = load(config.model, config.precision, world.device).with_usage(**reading(config))
        qrels = collection.qrels(config.split)
        if world.is_main:
            print(
                f"{collection.name}, {config.split} split, {config.setting} setting: {len(qrels)} queries, "
                f"{documents} documents (content hash {collection.fingerprint})\n",
                flush=True,
            )
        watch = Stopwatch(len(qrels) + documents)
        options: dict[str, Any] = {"output_dir": config.output_dir, "max_tokens": config.max_tokens}
        resumed = world.is_main and has_embeddings(model, collection, config.setting, **options)
        with watch.timing(config.model, resumed):
            run = model_run(model, collection, config.split, config.setting, **options)
        measures = evaluate_run(qrels, run)
        if world.is_main:
            origin = provenance(model, collection, config.split, config.setting)
            origin |= {"processes": world.size, "config": asdict(config)}
            if config.output_dir:
                write_results(Path(config.output_dir), run, measures, origin)
            rows = {}
            if not config.no_bm25:
                with watch.timing("BM25"):
                    ranked = bm25_run(collection, config.split, config.setting)
                rows["BM25"] = evaluate_run(qrels, ranked)
            if other:
                rows[str(config.against)] = evaluate_run(qrels, other)
            rows[config.model] = measures
            print(table(rows, [config.against] if config.against else [], watch=watch))
        return measures.means


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    evaluate(parse(EvaluateConfig, arguments, "python -m moe_retrieval.evaluate"))


if __name__ == "__main__":
    run_command(main)
