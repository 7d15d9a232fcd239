"""Questions with their answers and passages, in DPR's formats.

JSON    a list of {"question", "answers", "positive_ctxs", "hard_negative_ctxs", "ctxs"}, each passage with title and
        text, and perhaps id (or passage_id, or psg_id), score and has_answer. Every field but the question may be
        missing. Lines of the same objects where the name ends in .jsonl
CSV     lines of question, tab, a list of answers as Python writes it, without a header (.csv or .tsv)

Any of them may be compressed and end in .gz. Files are read and written one example at a time.
"""

import ast
import csv
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

from moe_retrieval.data.records import decode, read_lines, string_field
from moe_retrieval.errors import InputError
from moe_retrieval.files import drafted
from moe_retrieval.genpoe.json_list import read_list

ID_NAMES = ("id", "passage_id", "psg_id")
LISTS = ("ctxs", "positive_ctxs", "hard_negative_ctxs")


class Passage(NamedTuple):
    id: str
    title: str
    text: str
    score: float | None = None
    """Of the retriever or the reranker that was last"""
    has_answer: bool | None = None


class Example(NamedTuple):
    question: str
    answers: tuple[str, ...] = ()
    """Any of them is right; none where they are not known"""
    ctxs: tuple[Passage, ...] = ()
    """What was retrieved, the best first"""
    positives: tuple[Passage, ...] = ()
    hard_negatives: tuple[Passage, ...] = ()
    prediction: str | None = None


def read_examples(path: str | os.PathLike) -> Iterator[Example]:
    """Raises for a file without any."""
    name = Path(path).name.removesuffix(".gz")
    found = _read_table(path) if name.endswith((".csv", ".tsv")) else _read_objects(path)
    example = None
    for example in found:
        yield example
    if example is None:
        raise InputError(f"{path}: holds no question")


def answered(examples: Iterable[Example], path: str | os.PathLike) -> Iterator[Example]:
    """The same examples, of this file; raises for one without answers."""
    for example in examples:
        if not example.answers:
            raise InputError(f'{path}: expected "answers" to every question; {example.question!r:.80} has none')
        yield example


def _read_objects(path: str | os.PathLike) -> Iterator[Example]:
    for where, record in read_list(path):
        question = string_field(record, "question", where)
        if not question.strip():
            raise InputError(f"{where}: the question is empty")
        ctxs, positives, negatives = (_passages(record, field, where) for field in LISTS)
        answers = _answers(record["answers"], where) if "answers" in record else ()
        prediction = string_field(record, "prediction", where) if "prediction" in record else None
        yield Example(question, answers, ctxs, positives, negatives, prediction)


def _answers(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(answer, str) for answer in value):
        raise InputError(f'{where}: expected "answers" that are a list of texts, got {value!r:.60}')
    if not any(answer.strip() for answer in value):
        raise InputError(f'{where}: expected "answers" with at least one that is not empty, got {list(value)!r:.60}')
    return tuple(answer for answer in value if answer.strip())


def _passages(record: dict[str, Any], field: str, where: str) -> tuple[Passage, ...]:
    value = record.get(field) or []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise InputError(f'{where}: expected "{field}" that is a list of objects, got {value!r:.60}')
    return tuple(_passage(each, f"{where}: {field}[{place}]") for place, each in enumerate(value))


def _passage(record: dict[str, Any], where: str) -> Passage:
    name = next((record[field] for field in ID_NAMES if record.get(field) is not None), "")
    title = string_field(record, "title", where) if record.get("title") is not None else ""
    has_answer = record.get("has_answer")
    if has_answer is not None and not isinstance(has_answer, bool):
        raise InputError(f'{where}: expected a "has_answer" that is true or false, got {has_answer!r:.40}')
    text, score = string_field(record, "text", where), _score(record.get("score"), where)
    return Passage(str(name), title, text, score, has_answer)


def _score(value: Any, where: str) -> float | None:
    """DPR writes a score as a text, others as a number."""
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (OverflowError, TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f'{where}: expected a "score" that is a finite number, got {value!r:.40}')
    return number


def _read_table(path: str | os.PathLike) -> Iterator[Example]:
    for number, _, line in read_lines(path):
        where = f"{path}:{number}"
        columns = split_columns(decode(line, where), where)
        if len(columns) != 2:
            raise InputError(f"{where}: expected question and answers between a tab, got {len(columns)} columns")
        question, answers = columns
        if not question.strip():
            raise InputError(f"{where}: the question is empty")
        try:
            value = ast.literal_eval(answers)
        except (MemoryError, RecursionError, SyntaxError, ValueError):
            raise InputError(f"{where}: expected answers like ['one', 'another'], got {answers!r:.60}") from None
        yield Example(question, _answers(value, where))


def split_columns(line: str, where: str) -> list[str]:
    """Of a line with tabs, in which a column may stand in quotes, with doubled quotes inside."""
    try:
        (columns,) = csv.reader([line.rstrip("\r\n")], delimiter="\t", strict=True)
    except csv.Error as error:
        raise InputError(f"{where}: not columns between tabs ({error})") from None
    return columns


def check_target(path: str | os.PathLike, endings: tuple[str, ...] = (".json", ".jsonl")) -> None:
    """Whether this file can be written, before the work that ends with it."""
    if not os.fspath(path).endswith(endings):
        raise InputError(f"{path}: expected the name of a file to write that ends in {' or '.join(endings)}")
    target = Path(path)
    if target.is_dir():
        raise InputError(f"cannot write to {path}: it is a folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {target.parent}: {error.strerror}") from None


def write_examples(path: str | os.PathLike, examples: Iterable[Example]) -> int:
    """A list of JSON, an object a line, or JSON lines by the name; -> how many. The file is whole or not there."""
    head, between, tail = ("", "\n", "\n") if os.fspath(path).endswith(".jsonl") else ("[\n", ",\n", "\n]\n")
    count = 0
    with drafted(Path(path)) as file:
        file.write(head)
        for example in examples:
            file.write((between if count else "") + json.dumps(_to_json(example), ensure_ascii=False))
            count += 1
        file.write(tail)
    return count


def _to_json(example: Example) -> dict[str, Any]:
    lists = {
        "positive_ctxs": example.positives,
        "hard_negative_ctxs": example.hard_negatives,
        "ctxs": example.ctxs,
    }
    found: dict[str, Any] = {"question": example.question}
    if example.answers:
        found["answers"] = list(example.answers)
    if example.prediction is not None:
        found["prediction"] = example.prediction
    for field, passages in lists.items():
        if passages:
            found[field] = [_known(passage, "id" if field == "ctxs" else "passage_id") for passage in passages]
    return found


def _known(passage: Passage, name_of_id: str) -> dict[str, Any]:
    """What is known of a passage, under DPR's names."""
    values = {name_of_id: passage.id, **passage._asdict()}
    if name_of_id != "id":
        del values["id"]
    return {field: value for field, value in values.items() if value is not None}
