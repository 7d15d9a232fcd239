"""python -m moe_retrieval.search: questions to an index, and documents back.

One question from the command line, many from a file or from standard input, or one after the other (--interactive).
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import tyro

from moe_retrieval.cli import parse, run_command
from moe_retrieval.data.records import decode, read_lines, read_objects, string_field
from moe_retrieval.errors import InputError
from moe_retrieval.retrieval.embedder import Embedder
from moe_retrieval.retrieval.hits import Hit, search
from moe_retrieval.retrieval.index import Index
from moe_retrieval.retrieval.snippet import snippet

ASKED_TOGETHER = 256
"""Questions"""


@dataclass
class SearchConfig:
    """Searches an index. Without a question, questions are read from standard input, one a line."""

    index: str
    """What python -m moe_retrieval.index or a training run left."""
    question: tyro.conf.Positional[str | None] = None
    """What to look for, in quotes."""
    queries: str | None = None
    """A file of questions: one a line, or JSON lines with "text" and perhaps "_id" where it ends in .jsonl."""
    interactive: bool = False
    """Ask again after each answer, until an empty line or the end of the input."""
    top_k: int = 10
    """Documents an answer."""
    json: bool = False
    """One JSON object a question, with whole texts."""
    model: str | None = None
    """Where the index's model is, if not where it was; another model is refused."""

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise InputError(f"--top-k must be at least 1, got {self.top_k}")
        if (self.question is not None) + (self.queries is not None) + self.interactive > 1:
            raise InputError("a question, --queries and --interactive exclude each other")


class Question(NamedTuple):
    text: str
    id: str | None = None


def show(question: Question, hits: list[Hit], as_json: bool, many: bool) -> str:
    if as_json:
        named = {} if question.id is None else {"id": question.id}
        found = [hit._asdict() | {"score": round(hit.score, 6)} for hit in hits]
        return json.dumps(named | {"query": question.text, "results": found}, ensure_ascii=False)
    lines = [f"# {question.text}"] if many else []
    for hit in hits:
        title = "" if hit.title in ("", hit.id) else f"  {hit.title}"
        lines += [f"{hit.rank:3}  {hit.score:.3f}  {hit.id}{title}", f"            {snippet(hit.text, question.text)}"]
    return "\n".join(lines)


def read_questions(path: str) -> list[Question]:
    if path.endswith(".jsonl"):
        records = [(where, record) for where, record in read_objects(path)]
        found = [Question(string_field(record, "text", where), record.get("_id")) for where, record in records]
    else:
        found = [Question(decode(line, f"{path}:{number}").strip()) for number, _, line in read_lines(path)]
    if not found:
        raise InputError(f"{path}: holds no question")
    return found


def _lines_of_input(prompt: str = "") -> Iterator[str]:
    """Until the end; with a prompt, until an empty line."""
    while True:
        try:
            line = input(prompt if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except UnicodeDecodeError:
            raise InputError("standard input: not UTF-8") from None
        if line:
            yield line
        elif prompt:
            return


def answer(index: Index, model: Embedder, questions: list[Question], config: SearchConfig, many: bool) -> None:
    """Prints the answers."""
    for start in range(0, len(questions), ASKED_TOGETHER):
        part = questions[start : start + ASKED_TOGETHER]
        for question, hits in zip(part, search(index, model, [question.text for question in part], config.top_k)):
            print(show(question, hits, config.json, many), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    config = parse(SearchConfig, sys.argv[1:] if arguments is None else arguments, "python -m moe_retrieval.search")
    questions = read_questions(config.queries) if config.queries else []
    index = Index(config.index)
    model = index.load_model(config.model)
    if config.interactive:
        for line in _lines_of_input("> "):
            answer(index, model, [Question(line)], config, many=False)
    elif config.question is not None:
        answer(index, model, [Question(config.question)], config, many=False)
    else:
        given = questions or [Question(line) for line in _lines_of_input()]
        answer(index, model, given, config, many=len(given) > 1)


if __name__ == "__main__":
    run_command(main)
