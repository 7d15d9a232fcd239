"""What a run is made of: its data, and its model before the first step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moe_retrieval import data
from moe_retrieval.config import SCRATCH, TrainConfig
from moe_retrieval.data.beir import TRAINED_ON
from moe_retrieval.data.chained import Chained
from moe_retrieval.data.collection import Collection
from moe_retrieval.errors import InputError
from moe_retrieval.models import backbones
from moe_retrieval.models.loading import build_from_scratch, build_retriever, check_vocabulary, is_run
from moe_retrieval.models.retriever import Retriever
from moe_retrieval.models.tokenizer import Tokenizer, load_tokenizer
from moe_retrieval.retrieval.model import load
from moe_retrieval.training.distributed import World, main_first
from moe_retrieval.training.mixture import Part
from moe_retrieval.training.negatives import HardNegatives, training_pairs
from moe_retrieval.training.pairs import TrainingPairs
from moe_retrieval.training.scratch import make_tokenizer, shape_of
from moe_retrieval.training.validation import of_queries, split_off


def load_collections(config: TrainConfig, world: World) -> list[Collection]:
    """Rank 0 first: it may download or extract what the others then find."""
    with main_first(world):
        collections = [data.load(named.name, config.data_dir, config.columns) for named in config.datasets()]
        data.check_names(collections)
        for collection in collections:
            check_trainable(collection)
        return collections


def check_trainable(collection: Collection) -> None:
    if "train" not in collection.splits:
        other = TRAINED_ON.get(collection.name)
        hint = f": --dataset {other} has the pairs that go with it" if other else ""
        raise InputError(
            f"{collection.name} has no split 'train' to train on; it has {', '.join(collection.splits) or 'none'}{hint}"
        )


class Prepared(NamedTuple):
    retriever: Retriever
    tokenizer: Tokenizer
    backbone: str
    revision: str | None = None
    """Of a backbone from the hub, its commit."""


def make_model(config: TrainConfig, collections: Sequence[Collection], world: World, resumed: Path | None) -> Prepared:
    options: dict[str, Any] = {
        "variant": config.variant,
        "control_of": config.control_of,
        "expert_changes": config.expert_changes(),
        "dropout": config.dropout,
        **config.usage_changes(),
    }
    if config.model == SCRATCH:
        texts = Chained([collection.documents.texts for collection in collections])
        tokenizer = make_tokenizer(config, texts, world, resumed)
        if options["doc_length"] is not None:
            options["doc_length"] = min(options["doc_length"], config.max_positions)
        return Prepared(build_from_scratch(shape_of(config, tokenizer), **options), tokenizer, SCRATCH)
    folder = backbones.find(config.model)
    if is_run(folder):
        options["doc_length"] = config.doc_length  # its own, where none is given, and not that of the data set
    retriever = build_retriever(config.model, folder, redraw=config.drop_upcycling or 0.0, **options)
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, retriever, folder)
    return Prepared(retriever, tokenizer, config.model, backbones.revision(folder))


class HeldOut(NamedTuple):
    """Queries of a collection that show which step is the best."""

    collection: Collection
    split: str
    queries: list[str]


def make_parts(
    config: TrainConfig, collections: Sequence[Collection], world: World
) -> tuple[list[Part], list[HeldOut]]:
    """-> what is trained on, and what is held out; every part with as many negatives a query."""
    pairs = [make_pairs(config, collection, world) for collection in collections]
    fewest = min(each.num_negatives for each in pairs)
    parts, held_out = [], []
    for each, named in zip(pairs, config.datasets()):
        split, queries, rows = split_off(each.collection, each)
        if queries:
            held_out.append(HeldOut(each.collection, split, queries))
        if config.train_queries is not None:
            rows = of_queries(each, rows, config.train_queries)
        parts.append(Part(each.with_negatives(fewest), rows, named.weight))
    return parts, held_out


def make_pairs(config: TrainConfig, collection: Collection, world: World) -> TrainingPairs:
    number = config.num_negatives
    if number is None:
        number = 0 if config.negatives == "in-batch" else 1
    miner = None
    if config.negatives == "mined":
        miner = load(config.model, config.precision, world.device)
    pairs = training_pairs(
        collection,
        HardNegatives(config.negatives, number),
        model=miner,
        labelled=config.loss == "contrastive",
        seed=config.seed,
        shard=world.size > 1,
    )
    if config.loss == "contrastive" and not pairs.num_negatives and all(label for _, _, label in pairs.pairs):
        raise InputError(
            "--loss contrastive needs pairs with label 0, or --negatives bm25 or mined: nothing would be pushed away"
        )
    return pairs
