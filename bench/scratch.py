"""What a retriever from nothing is worth: trained with and without experts, by each loss, after reading and before.

    python -m bench.scratch [--steps 200] [--reading 2000]

Every training has the same steps, batches and rates. Writes bench/results/scratch.json, every measure, where and when;
and its table into docs/scratch.md. One that was stopped goes on.
"""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.harness.machine import ROOT, describe, short
from bench.harness.record import RESULTS
from bench.reports.page import write_page
from moe_retrieval import data
from moe_retrieval.bounds import check_bounds, flag
from moe_retrieval.cli import parse, run_command
from moe_retrieval.config import SCRATCH, TrainConfig
from moe_retrieval.data import Collection
from moe_retrieval.data.sentences import places, read_labelled, read_pairs
from moe_retrieval.evaluation.classification import evaluate_classification
from moe_retrieval.evaluation.metrics import evaluate_run
from moe_retrieval.evaluation.ranking import bm25_run
from moe_retrieval.evaluation.results import evaluate_model
from moe_retrieval.evaluation.similarity import evaluate_similarity
from moe_retrieval.evaluation.table import markdown
from moe_retrieval.presets import FROM_SCRATCH, PRESETS
from moe_retrieval.retrieval.model import load
from moe_retrieval.training.history import read_events
from moe_retrieval.training.loop import train
from moe_retrieval.training.pretrain_config import PretrainConfig
from moe_retrieval.training.pretraining import pretrain

FILE, PAGE = RESULTS / "scratch.json", ROOT / "docs" / "scratch.md"

RUNS: dict[str, dict[str, Any]] = {
    "dense": {"variant": "dense"},
    "moe": {"variant": "moe"},
    "dense, triplet": {"variant": "dense", "loss": "triplet", "margin": 0.3},
    "dense, contrastive": {"variant": "dense", "loss": "contrastive", "negatives": "bm25"},
}
"""What is trained from random weights -> how it differs from the others."""

PRETRAINED = {
    "read alone": None,
    "dense, after reading": {"variant": "dense"},
    "moe, after reading": {"variant": "moe"},
}
"""What begins as the encoder that has read the corpus -> how it is trained, if it is."""

SHOWN = {
    "NDCG@10": "NDCG@10", "MRR@10": "MRR@10", "MAP@10": "MAP@10", "Recall@100": "Recall@100",
    "Pearson": "STS-B Pearson", "Spearman": "Spearman", "Accuracy": "TREC-6 accuracy", "F1": "F1",
}  # fmt: skip
"""Measure -> its column"""

TINY = {"hidden": 16, "num_layers": 2, "heads": 2, "ff": 32, "vocab_size": 400}


@dataclass
class ScratchConfig:
    """Trains retrievers from nothing on one budget, and measures them on search, similarity and classification."""

    steps: int = 200
    """Of each training."""
    reading: int = 2000
    """Steps of pre-training."""
    dataset: str = "docs"
    """What is read, trained on and searched."""
    data_dir: str | None = None
    """Where data sets lie by name, stsb and trec6 among them, besides $MOE_RETRIEVAL_DATA."""
    output_dir: str = "runs/bench-scratch"
    """Where the runs lie."""
    tiny: bool = False
    """A rehearsal of seconds, of which nothing is written to bench/results."""

    def __post_init__(self) -> None:
        check_bounds(self, {"steps": (2, None), "reading": (2, None)}, flag)


def run(config: ScratchConfig) -> dict[str, Any]:
    """All trainings, or what is left of them, and what each model is worth."""
    collection = data.load(config.dataset, config.data_dir)
    folder = Path(config.output_dir)
    shape = TINY if config.tiny else {}
    read = FROM_SCRATCH | shape | {"max_steps": config.reading, "data_dir": config.data_dir}
    pretrained = PretrainConfig(corpus=config.dataset, output_dir=str(folder / "pretrained"), **read)
    guessed = pretrain(pretrained)
    folders = {}
    for number, (name, changes) in enumerate((RUNS | PRETRAINED).items()):
        model = pretrained.output_dir if name in PRETRAINED else SCRATCH
        if changes is None:
            folders[name] = model
            continue
        given = {"model": model, "dataset": config.dataset, "data_dir": config.data_dir, **changes}
        flags = PRESETS["from-scratch"].flags(given) | shape | given
        folders[name] = str(folder / f"run-{number}")
        train(TrainConfig(**flags, max_steps=config.steps, no_eval=True, output_dir=folders[name]))
    by_words = evaluate_run(collection.qrels("test"), bm25_run(collection, "test"))
    systems = {"BM25": by_words.means}
    systems |= {name: measured(config, each, collection) for name, each in folders.items()}
    return {
        "dataset": {"name": collection.name, "fingerprint": collection.fingerprint},
        "steps": config.steps,
        "reading": config.reading,
        "guessed": guessed.share if guessed else None,
        "systems": systems,
    }


def measured(config: ScratchConfig, folder: str, collection: Collection) -> dict[str, float]:
    """Of one run; without similarity or classification where their data is not here."""
    model = load(folder)
    measures = evaluate_model(model, collection, "test")
    if places(["stsb"], config.data_dir):
        measures |= evaluate_similarity(model, read_pairs("stsb", "test", config.data_dir))
    if places(["trec6"], config.data_dir):
        known, asked = (read_labelled("trec6", split, config.data_dir) for split in ("train", "test"))
        measures |= evaluate_classification(model, known, asked)
    measures["parameters"], measures["active"] = model.retriever.count_parameters()
    times = [event["time"] for event in read_events(Path(folder) / "log.jsonl") if "loss" in event]
    measures["minutes"] = len(times) * statistics.median(np.diff(times)) / 60  # a pause between two steps is none
    return measures


def table(results: Mapping[str, Any]) -> str:
    systems = results["systems"]
    columns = {"": list(systems)}
    for name, title in SHOWN.items():
        columns[title] = [f"{each[name]:.3f}" if name in each else "" for each in systems.values()]
    for name in ("parameters", "active"):
        columns[name] = [f"{each[name] / 1e6:.1f}M" if name in each else "" for each in systems.values()]
    columns["minutes"] = [f"{each['minutes']:.1f}" if "minutes" in each else "" for each in systems.values()]
    return markdown(columns)


def origin(results: Mapping[str, Any]) -> str:
    about = results["machine"]
    share = results["guessed"]
    guessed = f", after which {share:.0%} of hidden tokens are guessed" if share is not None else ""
    read = f"{results['reading']} steps of pre-training on `{results['dataset']['name']}`{guessed}"
    learned = f"{read}, and {results['steps']} of training"
    measured_on = f"{about['device']}, torch {about['versions']['torch']}, {about['time'][:10]}"
    losses = "`dense` and `moe` by `infonce`"
    return f"{learned}; {losses}. One seed, on {measured_on}, revision {short(about['revision'])}."


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(ScratchConfig, arguments, "python -m bench.scratch")
    results = {"machine": describe(torch.device("cuda" if torch.cuda.is_available() else "cpu")), **run(config)}
    print(f"\n{table(results)}\n\n{origin(results)}")
    if not config.tiny:
        FILE.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
        write_page(PAGE, "bench.scratch", f"{table(results)}\n\n{origin(results)}")
        print(f"results: {FILE}, {PAGE}")


if __name__ == "__main__":
    run_command(main)
