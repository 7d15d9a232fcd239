"""python -m moe_retrieval.search: questions to an index, and documents back.

One question from the command line, many from a file or from standard input, or one after the other (--interactive).
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import tyro

from moe_retrieval.bounds import check_bounds, flag
from moe_retrieval.cli import parse, run_command
from moe_retrieval.errors import InputError
from moe_retrieval.terminal import harmless

if TYPE_CHECKING:  # torch comes with them: bad input is to be told before
    from moe_retrieval.retrieval.embedder import Embedder
    from moe_retrieval.retrieval.hits import Hit
    from moe_retrieval.retrieval.index import Index

ASKED_TOGETHER = 256
"""Questions"""


@dataclass
class SearchConfig:
    """Searches an index. Without a question, questions are read from standard input, one a line."""

    index: str
    """What python -m moe_retrieval.index left, or the folder of a training run."""
    question: tyro.conf.Positional[tuple[str, ...]] = ()
    """What to look for; -- goes before a question that begins with a dash."""
    queries: str | None = None
    """A file of questions: one a line, or JSON lines with "text" and perhaps "_id" where it ends in .jsonl; either
    also with .gz."""
    interactive: bool = False
    """Ask again after each answer, until an empty line or the end of the input."""
    top_k: int = 10
    """Documents an answer."""
    json: bool = False
    """One JSON object a question, with whole texts."""
    model: str | None = None
    """Where the index's model is, if not where it was; another model is refused."""

    def __post_init__(self) -> None:
        check_bounds(self, {"top_k": (1, None)}, flag)
        if bool(self.question) + (self.queries is not None) + self.interactive > 1:
            raise InputError("a question, --queries and --interactive exclude each other")
        if self.question:
            check_question(" ".join(self.question))


class Question(NamedTuple):
    text: str
    id: str | None = None


def check_question(text: str) -> None:
    if not text.strip():
        raise InputError("the question is empty: expected some words to look for")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("the question is not UTF-8") from None


def search(
    index: "Index | str | Path", questions: Sequence[str], top_k: int = 10, *, model: "Embedder | None" = None
) -> "list[list[Hit]]":
    """The best documents for each question, from an open `Index`, or the folder of one or of a run.

    For many calls, open the index and load its model once: `Index(folder)`, `index.load_model()`.
    """
    from moe_retrieval.retrieval import hits
    from moe_retrieval.retrieval.index import Index

    opened = index if isinstance(index, Index) else Index(index)
    return hits.search(opened, model or opened.load_model(), questions, top_k)


def show(question: Question, hits: "list[Hit]", as_json: bool, many: bool) -> str:
    from moe_retrieval.retrieval.snippet import snippet

    if as_json:
        named = {} if question.id is None else {"id": question.id}
        found = [hit._asdict() | {"score": round(hit.score, 6)} for hit in hits]
        return harmless(json.dumps(named | {"query": question.text, "results": found}, ensure_ascii=False))
    lines = [f"# {question.text}"] if many else []
    for hit in hits:
        title = "" if hit.title in ("", hit.id) else f"  {hit.title}"
        lines += [f"{hit.rank:3}  {hit.score:.3f}  {hit.id}{title}", f"            {snippet(hit.text, question.text)}"]
    return "\n".join(map(harmless, lines))


def read_questions(path: str) -> list[Question]:
    from moe_retrieval.data.records import decode, read_lines, read_objects, string_field

    if path.endswith((".jsonl", ".jsonl.gz")):
        records = [(where, record) for where, record in read_objects(path)]
        found = [Question(string_field(record, "text", where), record.get("_id")) for where, record in records]
    else:
        found = [Question(decode(line, f"{path}:{number}").strip()) for number, _, line in read_lines(path)]
    if not found:
        raise InputError(f"{path}: holds no question")
    return found


def answer(index: "Index", model: "Embedder", questions: list[Question], config: SearchConfig, many: bool) -> None:
    """Prints the answers."""
    for start in range(0, len(questions), ASKED_TOGETHER):
        part = questions[start : start + ASKED_TOGETHER]
        found = search(index, [question.text for question in part], config.top_k, model=model)
        for question, hits in zip(part, found):
            print(show(question, hits, config.json, many), flush=True)


def answer_input(index: "Index", model: "Embedder", config: SearchConfig) -> None:
    """The questions of standard input; those before a line that is no text are answered all the same."""
    given: list[Question] = []
    bad: InputError | None = None
    try:
        given.extend(Question(line) for line in _lines_of_input())
    except InputError as error:
        bad = error
    answer(index, model, given, config, many=len(given) > 1)
    if bad is not None:
        raise bad


def _lines_of_input() -> Iterator[str]:
    from moe_retrieval.data.records import decode

    for number, line in enumerate(sys.stdin.buffer, 1):
        if text := decode(line, f"standard input:{number}").strip():
            yield text


def converse(index: "Index", model: "Embedder", config: SearchConfig) -> None:
    """Asks again after each answer. On a terminal with a line to edit, and the earlier ones to take again."""
    on_terminal = sys.stdin.isatty()
    if on_terminal:
        with suppress(ImportError):  # Windows has none: a plain line then
            import readline  # noqa: F401 -- input() uses it once it is there
        print(
            f"{len(index.documents):,} documents. Ask in plain words; arrow up: an earlier question; empty line: end."
        )
    while True:
        try:
            line = input("> " if on_terminal else "").strip()
        except EOFError:
            return
        except UnicodeDecodeError:  # in the C locale such bytes come as half surrogates instead
            raise InputError("the question is not UTF-8") from None
        if not line:
            return
        check_question(line)
        answer(index, model, [Question(line)], config, many=False)


def main(arguments: Sequence[str] | None = None) -> None:
    config = parse(SearchConfig, sys.argv[1:] if arguments is None else arguments, "python -m moe_retrieval.search")
    questions = read_questions(config.queries) if config.queries else []
    if config.question:
        questions = [Question(" ".join(config.question))]
    from moe_retrieval.retrieval.index import Index

    index = Index(config.index)
    model = index.load_model(config.model)
    if questions:
        answer(index, model, questions, config, many=len(questions) > 1)
    elif config.interactive or sys.stdin.isatty():
        converse(index, model, config)
    else:
        answer_input(index, model, config)


if __name__ == "__main__":
    run_command(main)
