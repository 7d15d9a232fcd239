"""python -m moe_retrieval.genpoe.retrieve: the passages for each question, by a dense retriever or by BM25."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from moe_retrieval.bounds import check_bounds, flag
from moe_retrieval.cli import parse, run_command
from moe_retrieval.retrieval.limits import MAX_TOKENS

if TYPE_CHECKING:
    from moe_retrieval.genpoe.examples import Example

BM25_NAME = "bm25"


@dataclass
class RetrieveConfig:
    """Finds passages for questions, and writes both as DPR does: a JSON list with "ctxs", of which each says whether it
    has an answer. A run that was stopped goes on with the embeddings it had."""

    model: str
    """What embeds passages: a run, a Hugging Face directory, an alias (minilm), or a repository of the hub; DPR's
    context encoder is facebook/dpr-ctx_encoder-single-nq-base. bm25 embeds nothing; it has all passages in memory."""
    passages: str
    """Lines of id, text and title between tabs (.tsv, as DPR's Wikipedia), or JSON lines of them; also .gz."""
    questions: str
    """Questions and answers as DPR has them, JSON, JSON lines or .csv; also .gz."""
    output: str
    """The file to write, .json or .jsonl."""
    query_model: str | None = None
    """What embeds questions; None is the same as --model."""
    embeddings: str | None = None
    """The folder of the passages' embeddings, which serve other questions too; None is OUTPUT.embeddings."""
    top_k: int = 100
    """Passages a question."""
    shard_size: int = 1 << 20
    """Passages whose embeddings are one file, and in memory at a time at most."""
    title_joint: str | None = None
    """Between a passage's title and its text; None is [SEP] for DPR's encoders, and a space for all others."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """The type that is computed in; auto is bf16 where that is faster, else fp32."""
    query_length: int | None = None
    """Tokens read of a question; None is the model's own."""
    doc_length: int | None = None
    """Tokens read of a passage; None is the model's own."""
    query_prompt: str | None = None
    """Put before a question; None is the model's own."""
    doc_prompt: str | None = None
    """Put before a passage; None is the model's own."""
    max_tokens: int = MAX_TOKENS
    """Tokens that are encoded at a time."""

    def __post_init__(self) -> None:
        check_bounds(self, {"top_k": (1, None), "shard_size": (1, None), "max_tokens": (1, None)}, flag)

    @property
    def embeddings_folder(self) -> Path:
        return Path(self.embeddings or f"{self.output}.embeddings")


def retrieve(config: RetrieveConfig) -> dict[str, float]:
    """What the command does; -> top-k accuracy ({} without answers, and on every rank but the first)."""
    from moe_retrieval.genpoe.examples import Example, check_target, read_examples

    check_target(config.output)
    if config.model != BM25_NAME:
        return _by_embeddings(config)
    from moe_retrieval.genpoe.lexical import by_words
    from moe_retrieval.genpoe.passages import Passages

    asked = [Example(each.question, each.answers) for each in read_examples(config.questions)]
    return _write(config.output, by_words(asked, Passages(config.passages), config.top_k), len(asked))


def _by_embeddings(config: RetrieveConfig) -> dict[str, float]:
    from moe_retrieval.genpoe.examples import Example, read_examples
    from moe_retrieval.genpoe.passages import Passages
    from moe_retrieval.genpoe.shards import Shards, with_passages
    from moe_retrieval.genpoe.towers import check_towers, joint_of
    from moe_retrieval.models.usage import reading
    from moe_retrieval.progress import Meter
    from moe_retrieval.retrieval.encode import encode_texts
    from moe_retrieval.retrieval.model import Model, load
    from moe_retrieval.training.distributed import main_first, running_world, sole_use

    with running_world() as world, sole_use(config.embeddings_folder, world, "--embeddings"):

        def tower(name: str) -> Model:
            return load(name, config.precision, world.device).with_usage(**reading(config))

        with main_first(world):  # it may download what the others then find
            with Meter(f"reading {config.questions}"):
                asked = [Example(each.question, each.answers) for each in read_examples(config.questions)]
            model = tower(config.model)
            query_model = tower(config.query_model) if config.query_model else model
            check_towers(query_model, model)
            joint = joint_of(config.model) if config.title_joint is None else config.title_joint
            passages = Passages(config.passages, joint)
            shards = Shards(model, passages, config.embeddings_folder, config.shard_size, config.max_tokens)
            if world.is_main:
                shards.begin()
        questions = [example.question for example in asked]
        queries_QH = encode_texts(
            query_model, questions, "query", shard=True, max_tokens=config.max_tokens, progress="questions"
        )
        found = with_passages(asked, passages, *shards.search(queries_QH, config.top_k))
        return _write(config.output, found, len(asked)) if world.is_main else {}


def _write(output: str, found: "Iterable[Example]", total: int) -> dict[str, float]:
    """With marks of the passages that have an answer; -> top-k accuracy"""
    from moe_retrieval.genpoe.accuracy import TopK, marked
    from moe_retrieval.genpoe.examples import write_examples
    from moe_retrieval.progress import Meter

    top_k = TopK()
    with Meter("looking for answers", total, "questions") as meter:
        write_examples(output, meter.over(top_k.watch(map(marked, found))))
    print(f"{total:,} questions with their passages in {output}")
    return top_k.shares()


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(RetrieveConfig, arguments, "python -m moe_retrieval.genpoe.retrieve")
    for name, share in retrieve(config).items():
        print(f"{name:10} {share:.4f}")


if __name__ == "__main__":
    run_command(main)
