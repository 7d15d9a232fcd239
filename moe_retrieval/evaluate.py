"""python -m moe_retrieval.evaluate: a model's ranking of a collection, measured."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from moe_retrieval.bounds import check_bounds, flag
from moe_retrieval.cli import parse, run_command
from moe_retrieval.dataset_names import check_columns, split_names
from moe_retrieval.errors import InputError
from moe_retrieval.retrieval.limits import MAX_TOKENS

if TYPE_CHECKING:
    from moe_retrieval.data import Collection
    from moe_retrieval.evaluation.metrics import Measures
    from moe_retrieval.evaluation.runs import Run
    from moe_retrieval.retrieval.model import Model
    from moe_retrieval.training.distributed import World


@dataclass
class EvaluateConfig:
    """Ranks a collection's documents for the queries of a split, and measures the ranking beside BM25's."""

    model: str
    """A run, a Hugging Face directory, an alias (minilm), or a repository of the hub."""
    dataset: str = "docs"
    """docs, a BEIR data set by name, a BEIR-format folder, or JSON lines of pairs {"query": ..., "positive": ...},
    triplets or lists; examples/data has one of each. Several with commas between: each, and their mean."""
    split: str = "test"
    """Whose queries are asked."""
    setting: Literal["full", "gold-pool"] = "full"
    """Rank all documents, or only those that answer some query of the split."""
    output_dir: str | None = None
    """Where metrics.json, run.trec and embeddings go, with which a run that was stopped goes on; None is nowhere."""
    data_dir: str | None = None
    """Where data sets lie by name, besides $MOE_RETRIEVAL_DATA."""
    columns: str | None = None
    """hf: which column is which field of a line, like query=question,positive=answer; None is by their names."""
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
    """What the command does; returns the measures of the model, of several data sets their mean."""
    named = split_names(config.dataset)
    check_columns(named, config.columns)
    for each in named:
        if each.weight != 1:
            raise InputError(f"--dataset {config.dataset}: weights are for training, in a mean each counts as much")
    from moe_retrieval import data
    from moe_retrieval.evaluation.comparison import read_other
    from moe_retrieval.evaluation.overview import Scored, mean_measures, overview
    from moe_retrieval.evaluation.ranking import candidate_rows
    from moe_retrieval.evaluation.results import write_means
    from moe_retrieval.models.usage import reading
    from moe_retrieval.retrieval.model import load
    from moe_retrieval.training.distributed import main_first, running_world, sole_use

    with running_world() as world, sole_use(config.output_dir, world):
        with main_first(world):  # it may download what the others then find
            asked = [
                (each.name, found)
                for each in named
                for found in data.load_all(each.name, config.data_dir, config.columns)
            ]
            data.check_names([collection for _, collection in asked])
            for _, collection in asked:
                candidate_rows(collection, config.split, config.setting)
            if config.against and len(asked) > 1:
                raise InputError(f"--against is a run on one data set, got --dataset {config.dataset}")
            first = asked[0][1]
            other = read_other(config.against, first, config.split, config.setting) if config.against else None
            model = load(config.model, config.precision, world.device).with_usage(**reading(config))
        scored = []
        for group, collection in asked:
            folder = config.output_dir
            if folder and len(asked) > 1:
                folder = str(Path(folder) / collection.name)
            scored.append(Scored(group, collection.name, _measure(config, collection, model, world, folder, other)))
            if world.is_main and len(asked) > 1:
                print()
        if world.is_main and len(asked) > 1:
            print(overview(scored))
            if config.output_dir:
                write_means(Path(config.output_dir), scored, config.model, {"config": asdict(config)})
        return mean_measures(scored, config.model)


def _measure(
    config: EvaluateConfig, collection: "Collection", model: "Model", world: "World", folder: str | None,
    other: "Run | None",
) -> "dict[str, Measures]":  # fmt: skip
    """What each system is worth, in the process that says so; the model alone in the others."""
    from moe_retrieval.evaluation.metrics import evaluate_run
    from moe_retrieval.evaluation.ranking import bm25_run, candidate_rows, has_embeddings, model_run
    from moe_retrieval.evaluation.results import provenance, write_results
    from moe_retrieval.evaluation.stopwatch import Stopwatch
    from moe_retrieval.evaluation.table import table

    qrels = collection.qrels(config.split)
    documents = len(candidate_rows(collection, config.split, config.setting))
    if world.is_main:
        print(
            f"{collection.name}, {config.split} split, {config.setting} setting: {len(qrels)} queries, "
            f"{documents} documents (content hash {collection.fingerprint})\n",
            flush=True,
        )
    watch = Stopwatch(len(qrels) + documents)
    options: dict[str, Any] = {"output_dir": folder, "max_tokens": config.max_tokens}
    resumed = world.is_main and has_embeddings(model, collection, config.setting, **options)
    with watch.timing(config.model, resumed):
        run = model_run(model, collection, config.split, config.setting, **options)
    measures = evaluate_run(qrels, run)
    rows = {}
    if world.is_main:
        origin = provenance(model, collection, config.split, config.setting)
        if folder:
            write_results(Path(folder), run, measures, origin | {"processes": world.size, "config": asdict(config)})
        if not config.no_bm25:
            with watch.timing("BM25"):
                ranked = bm25_run(collection, config.split, config.setting)
            rows["BM25"] = evaluate_run(qrels, ranked)
        if other:
            rows[str(config.against)] = evaluate_run(qrels, other)
    rows[config.model] = measures
    if world.is_main:
        print(table(rows, [config.against] if config.against else [], watch=watch))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    evaluate(parse(EvaluateConfig, arguments, "python -m moe_retrieval.evaluate"))


if __name__ == "__main__":
    run_command(main)
