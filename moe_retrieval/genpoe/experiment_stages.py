"""The experiment's way from nothing to answers, in stages: what the commands of this room do, with their files.

A stage that is done is not done again; one that was stopped goes on as its command does.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from moe_retrieval.errors import InputError, changes
from moe_retrieval.files import read_object, write_json
from moe_retrieval.genpoe.answer import AnswerConfig, answer
from moe_retrieval.genpoe.decoder_config import TrainDecoderConfig
from moe_retrieval.genpoe.decoder_training import train_decoder
from moe_retrieval.genpoe.examples import read_examples, write_examples
from moe_retrieval.genpoe.experiment_asked import MOST, WAYS, Way, asked, with_one_right
from moe_retrieval.genpoe.experiment_config import ExperimentConfig
from moe_retrieval.genpoe.facts_files import write_facts
from moe_retrieval.genpoe.facts_settings import FactsSettings
from moe_retrieval.genpoe.groups import group_of, write_groups
from moe_retrieval.genpoe.measures import measure
from moe_retrieval.genpoe.reader_training import train
from moe_retrieval.genpoe.rerank import RerankConfig, rerank
from moe_retrieval.genpoe.reranker_config import TrainRerankerConfig
from moe_retrieval.genpoe.reranker_training import train_reranker
from moe_retrieval.genpoe.retrieve import BM25_NAME, RetrieveConfig, retrieve
from moe_retrieval.genpoe.synthetic import make_facts
from moe_retrieval.genpoe.train_config import TrainConfig
from moe_retrieval.locks import locked

RERANKED_AT_ONCE = 8
"""Questions of a step of the reranker"""

RERANKER_PROMPT = "Answer:"
"""A small decoder has never read sentences as that of the sources, behind which it learned nothing in 160 steps; behind
this word it has learned to look for an answer."""

SETTINGS, RESULTS, SECONDS = "experiment.json", "results.json", "seconds.json"


class Stage(NamedTuple):
    name: str
    product: Path
    """A file that it leaves"""
    make: Callable[[], Any]


def run(config: ExperimentConfig) -> dict[str, Any]:
    """What the command does; -> the settings, and what was measured for each seed"""
    folder = Path(config.output_dir)
    with locked(folder):
        settings = {name: value for name, value in asdict(config).items() if name not in ("output_dir", "seeds")}
        _check_settings(folder / SETTINGS, settings)
        found = {str(seed): run_seed(config, seed, folder / f"seed-{seed}") for seed in range(config.seeds)}
        results = {"settings": settings, "seeds": found}
        write_json(folder / RESULTS, results)
        return results


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Those of what is there already."""
    if not path.exists():
        write_json(path, settings)
    if changed := changes(read_object(path), settings):
        raise InputError(f"{path.parent} holds an experiment with {changed}: give another --output-dir")


def run_seed(config: ExperimentConfig, seed: int, folder: Path) -> dict[str, Any]:
    """-> what was measured, and how many seconds each stage took"""
    folder.mkdir(exist_ok=True)
    path = folder / SECONDS
    seconds = read_object(path) if path.exists() else {}
    learning = (each for part in (reading, ranking, making) for each in part(config, seed, folder))
    for stage in (*learning, *answering(config, folder)):
        if stage.name in seconds and stage.product.exists():
            continue
        print(f"seed {seed}: {stage.name}", flush=True)
        began = time.monotonic()
        stage.make()
        seconds[stage.name] = round(time.monotonic() - began, 1)
        write_json(path, seconds)
    return measured(folder) | {"seconds": seconds}


def reading(config: ExperimentConfig, seed: int, folder: Path) -> Iterator[Stage]:
    """Facts, and a decoder that reads."""
    facts, decoder = folder / "facts", folder / "decoder"
    settings = FactsSettings(
        decoder_people=config.decoder_people, train_people=config.train_people, dev_people=1,
        test_people=config.test_people, negatives=MOST - 1, seed=seed,
    )  # fmt: skip
    yield Stage("facts", facts / "facts.json", lambda: _make_facts(facts, settings))
    trains = TrainDecoderConfig(
        data=str(facts / "texts.jsonl"), output_dir=str(decoder), hidden_size=config.hidden_size, layers=config.blocks,
        heads=config.heads, lr=3e-3, max_steps=config.decoder_steps, precision=config.precision, seed=seed,
    )  # fmt: skip
    yield Stage("decoder", decoder / "model.safetensors", partial(train_decoder, trains))


def ranking(config: ExperimentConfig, seed: int, folder: Path) -> Iterator[Stage]:
    """Passages by their words, and a reranker that has learned from as many questions as its steps take."""
    some, groups, reranker = folder / "some-train.json", folder / "groups.jsonl", folder / "reranker"
    questions = read_examples(folder / "facts" / "train.json")
    count = RERANKED_AT_ONCE * config.reranker_steps
    yield Stage("some questions", some, lambda: write_examples(some, islice(questions, count)))
    yield _retrieval(folder, "train", some)
    yield _retrieval(folder, "test", folder / "facts" / "test.json")
    yield Stage("prepare", groups, lambda: _prepare(folder / "bm25-train.json", groups))
    trains = TrainRerankerConfig(
        model=str(folder / "decoder"), data=str(groups), output_dir=str(reranker), group_size=4,
        batch_size=RERANKED_AT_ONCE, chunk_size=0, lr=1e-3, max_steps=config.reranker_steps,
        precision=config.precision, seed=seed,
    )  # fmt: skip
    yield Stage("reranker", reranker / "reranker.json", partial(train_reranker, trains))


def making(config: ExperimentConfig, seed: int, folder: Path) -> Iterator[Stage]:
    """A hypernetwork that makes experts."""
    trains = TrainConfig(
        model=str(folder / "decoder"), data=str(folder / "facts" / "train.json"), output_dir=str(folder / "experts"),
        layers=str(config.layer), rank=config.rank, bottleneck=config.bottleneck, batch_size=64, lr=config.expert_lr,
        weight_decay=0.0, max_steps=config.expert_steps, precision=config.precision, seed=seed,
    )  # fmt: skip
    yield Stage("hypernetwork", folder / "experts" / "experts.json", partial(train, trains))


def _make_facts(folder: Path, settings: FactsSettings) -> None:
    folder.mkdir(exist_ok=True)
    write_facts(folder, make_facts(settings))


def _retrieval(folder: Path, name: str, questions: Path) -> Stage:
    retrieves = RetrieveConfig(
        model=BM25_NAME, passages=str(folder / "facts" / "passages.tsv"), questions=str(questions),
        output=str(folder / f"bm25-{name}.json"), top_k=MOST,
    )  # fmt: skip
    return Stage(f"retrieve {name}", Path(retrieves.output), partial(retrieve, retrieves))


def _prepare(retrieved: Path, groups: Path) -> None:
    found = (group_of(example, "passage") for example in read_examples(retrieved))
    write_groups(groups, (group._replace(prompt=RERANKER_PROMPT) for group in found))


def answering(config: ExperimentConfig, folder: Path) -> Iterator[Stage]:
    """Questions about people whom nothing has seen."""
    ready = folder / "asked"
    one_right = ready / "one-right.json"
    yield Stage("one right", one_right, lambda: _ask_one_right(folder, one_right))
    for source, target in ((folder / "bm25-test.json", "reranked.json"), (one_right, "one-right-reranked.json")):
        reranks = RerankConfig(
            str(folder / "reranker"), str(source), str(ready / target), precision=config.precision, max_tokens=8192
        )
        yield Stage(f"rerank {source.stem}", ready / target, partial(rerank, reranks))
    yield Stage("ask", ready / "bm25.json", lambda: _ask(folder, ready))
    for way in WAYS:
        answers = _answers(config, folder, way)
        yield Stage(way.name, Path(answers.output), partial(answer, answers))


def _ask_one_right(folder: Path, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    write_examples(path, with_one_right(read_examples(folder / "facts" / "test.json")))


def _ask(folder: Path, ready: Path) -> None:
    rows = list(asked(read_examples(folder / "facts" / "test.json"), read_examples(ready / "one-right-reranked.json")))
    for name in rows[0]:
        write_examples(ready / f"{name}.json", (row[name] for row in rows))
    write_examples(ready / "bm25.json", read_examples(folder / "bm25-test.json"))


def _answers(config: ExperimentConfig, folder: Path, way: Way) -> AnswerConfig:
    (folder / "answers").mkdir(exist_ok=True)
    model = folder / ("experts" if way.passages else "decoder")
    return AnswerConfig(
        model=str(model), input=str(folder / "asked" / f"{way.file}.json"),
        output=str(folder / "answers" / f"{slug(way.name)}.json"), passages=way.passages, in_prompt=way.in_prompt,
        max_new_tokens=8, batch_size=50, precision=config.precision,
    )  # fmt: skip


def slug(name: str) -> str:
    """
    >>> slug("GenPoE, a relative's passage")
    'genpoe-a-relatives-passage'
    """
    return "-".join(name.lower().replace(",", "").replace("'", "").split())


def measured(folder: Path) -> dict[str, Any]:
    answers = {}
    for way in WAYS:
        path = folder / "answers" / f"{slug(way.name)}.json"
        questions, measures = measure(read_examples(path), path)
        answers[way.name] = {name: measures[name] for name in ("EM", "F1")}
    lists = {"BM25": folder / "bm25-test.json", "reranker": folder / "asked" / "reranked.json"}
    found = {name: measure(read_examples(path), path)[1] for name, path in lists.items()}
    return {"questions": questions, "answers": answers, "retrieval": found}
