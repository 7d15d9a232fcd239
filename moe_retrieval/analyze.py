"""python -m moe_retrieval.analyze: what the experts of a run do on a collection.

It leaves README.md, tables to read, and analysis.json, from which plots can be drawn. There every list of objects is a
table with a row each; a row names its layer (as in the weights), its side (query or document) and its domain (null: all
texts), and arrays over experts go from the first expert on:

    run          what was looked at: the model's fingerprint, the collection's, precision, split, setting, against, ...
    ndcg_at_10   of the model
    layers       layer, routes (texts: after the pooling; or tokens), experts, top_k, chosen_by (router or hash), noise
                 (whether training adds some to the router's scores)
    load         layer, side, domain, count (tokens or texts), share [experts], entropy (nats), effective_experts
                 (exp of it). One that goes to K experts counts 1 / K for each; where all run, by the gate's weights
    balance      of training: note (why there is less), shares: rows of step, layer, share [experts], effective_experts;
                 router_loss: rows of step, aux
    redundancy   layer, inputs (how many), outputs and weights: cosines [experts][experts], mean_output_cosine and
                 mean_weight_cosine over the pairs
    terms        layer, side, expert, terms: rows of term, score (see analysis/terms.py), count (of tokens; after the
                 pooling, of texts with this word), share (of all counts of the term, those at the expert)
    confidence   layer, queries, spearman (of the gate's largest probability, its mean over a query's tokens, with
                 NDCG@10), p, bins: rows of queries, lowest, highest, ndcg_at_10
    removal      note (what was left out), experts: rows of layer, expert, share (of the documents), ndcg_at_10 without
                 it, difference, queries_changed, p
    findings     kind (collapse, redundancy, instability), where (a layer or a step), text
    domains      domain, documents, queries, ndcg_at_10, against; empty where documents name none
    queries      arrays over the queries: query, domain, ndcg_at_10, against (or null), confidence: layer -> array
    against      ndcg_at_10 of the other model, difference, p, gained and lost (queries); null without --against
    gains        the queries that gain most: query, text, ndcg_at_10, against, difference, the documents top,
                 against_top and relevant (id, text), rank and against_rank of the last; losses: the same
    map          texts drawn evenly, as arrays: side, id, text (its beginning), domain, expert: layer -> array (the one
                 that did most of a text), pca and tsne: x and y of the embeddings in two dimensions; tsne is null
                 without scikit-learn, or where there are too few
    nearness     some queries against the documents that answer them: queries and documents (id, text, domain), in the
                 same order, and cosines [queries][documents] of their embeddings
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moe_retrieval.bounds import check_bounds, flag
from moe_retrieval.cli import parse, run_command
from moe_retrieval.errors import InputError


@dataclass
class AnalyzeConfig:
    """Tells what each expert of a run does on a collection: load, balance, redundancy, terms, and what it is worth."""

    model: str
    """A run; of a model without experts, what can be told without them."""
    output_dir: str
    """Where analysis.json and README.md go."""
    dataset: str = "docs"
    """docs, a BEIR data set by name, a BEIR-format folder, or JSON lines, as for evaluate."""
    split: str = "test"
    """Whose queries are asked."""
    setting: Literal["full", "gold-pool"] = "full"
    """Look at all documents, or only at those that answer some query of the split."""
    against: str | None = None
    """Another model, or its run.trec: tells which queries gain and lose against it."""
    removals: int | None = None
    """Experts that are removed, one at a time, those with most load first; None is all of a layer after the pooling,
    and none inside an encoder, where each takes as long as an evaluation."""
    data_dir: str | None = None
    """Where data sets lie by name, besides $MOE_RETRIEVAL_DATA."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """The type that is computed in; auto is bf16 where that is faster, else fp32."""

    def __post_init__(self) -> None:
        check_bounds(self, {"removals": (0, None)}, flag)


def analyze(config: AnalyzeConfig) -> dict[str, Any]:
    """What the command does; -> what is in analysis.json."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("analyze looks at all texts in one process: call it without torchrun")
    from moe_retrieval import data
    from moe_retrieval.analysis.page import page, summary
    from moe_retrieval.analysis.study import Question, rank_other, study
    from moe_retrieval.evaluation.ranking import candidate_rows
    from moe_retrieval.files import write, write_json
    from moe_retrieval.locks import locked
    from moe_retrieval.models import backbones
    from moe_retrieval.retrieval.model import load

    output = Path(config.output_dir)
    with locked(output):
        if (output / "README.md").exists() and not (output / "analysis.json").exists():  # a run's is its model card
            raise InputError(
                f"{output / 'README.md'} is of something else, and would be lost: give another --output-dir"
            )
        collection = data.load(config.dataset, config.data_dir)
        question = Question(collection, config.split, config.setting)
        queries, documents = len(collection.qrels(config.split)), len(candidate_rows(*question))
        model = load(config.model, config.precision)
        print(
            f"{collection.name}, {config.split} split, {config.setting} setting: {queries} queries, "
            f"{documents} documents (content hash {collection.fingerprint})\n",
            flush=True,
        )
        other = None if config.against is None else rank_other(question, config.against, config.precision)
        found = study(model, backbones.find(config.model), question, other, config.removals)
        write_json(output / "analysis.json", found)
        write(output / "README.md", page(config.model, found).encode())
        print(f"{summary(config.model, found)}\n\nmore in {output / 'README.md'}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    analyze(parse(AnalyzeConfig, arguments, "python -m moe_retrieval.analyze"))


if __name__ == "__main__":
    run_command(main)
