"""Answers to the questions of a file, a batch of like length after the other; what was answered is kept at once."""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_retrieval.errors import InputError
from moe_retrieval.files import write
from moe_retrieval.genpoe.examples import Example, Passage, read_examples, write_examples
from moe_retrieval.genpoe.expert_store import ExpertStore
from moe_retrieval.genpoe.reader import Asked, Made, Reader
from moe_retrieval.locks import locked
from moe_retrieval.progress import Meter


@dataclass
class Answering:
    """How questions are answered."""

    reader: Reader
    store: ExpertStore | None
    """Where experts are; None makes them."""
    passages: int
    """Of a question, that become experts."""
    in_prompt: int
    """Of a question, that stand in the prompt."""
    batch_size: int
    most: int
    """Tokens of an answer"""
    seconds: dict[str, float] = field(init=False, default_factory=lambda: {"experts": 0.0, "answers": 0.0})
    made: int = field(init=False, default=0)
    """Experts so far"""

    def asked(self, example: Example) -> Asked:
        ranked = ranked_passages(example)
        prompt = self.reader.wording.asked(example.question, ranked[: self.in_prompt])
        return Asked(prompt, ranked[: self.passages])

    def answer(self, batch: Sequence[Asked]) -> list[str]:
        began = time.perf_counter()
        experts = self._experts([passage for each in batch for passage in each.passages])
        between = time.perf_counter()
        texts = self.reader.answer(batch, experts, self.most)
        self.seconds["experts"] += between - began
        self.seconds["answers"] += time.perf_counter() - between
        return texts

    def _experts(self, passages: Sequence[Passage]) -> Made:
        self.made += len(passages)
        return (self.store or self.reader).experts(passages)


def ranked_passages(example: Example) -> tuple[Passage, ...]:
    """What was retrieved; of a question that was not retrieved for, what answers it first."""
    return example.ctxs or (*example.positives, *example.hard_negatives)


def answer_file(answering: Answering, source: str, output: str, about: dict[str, Any]) -> int:
    """Writes the questions of `source` with predictions; -> how many. A run that was stopped goes on, if it is of the
    same questions and settings, which `about` tells."""
    folder = Path(f"{output}.part")
    with locked(folder, "--output"):
        journal = Journal(folder / "answers.jsonl", about)
        asked = [answering.asked(example) for example in read_examples(source)]
        with Meter("answering", len(asked), "questions", len(journal.answers)) as meter:
            for rows in _batches(asked, answering.batch_size):
                if rows[0] not in journal.answers:
                    journal.add(rows, answering.answer([asked[row] for row in rows]))
                    meter.advance(len(rows))
        write_examples(output, _predicted(source, journal.answers))
    shutil.rmtree(folder)
    return len(asked)


def _batches(asked: Sequence[Asked], size: int) -> Iterator[list[int]]:
    """The longest prompts first: where memory does not suffice, that is seen at once."""
    order = sorted(range(len(asked)), key=lambda row: -len(asked[row].prompt.ids))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _predicted(source: str, answers: dict[int, str]) -> Iterator[Example]:
    for row, example in enumerate(read_examples(source)):
        yield example._replace(prediction=answers[row])


class Journal:
    """Answers by row, each batch of which is in a file when it is there."""

    def __init__(self, path: Path, about: dict[str, Any]):
        self.path = path
        self.answers: dict[int, str] = {}
        lines = path.read_text("utf-8").split("\n") if path.is_file() else []
        if len(lines) > 1:  # what a kill left of a line has no end
            if json.loads(lines[0]) != about:
                raise InputError(f"{path.parent} has answers of other flags or data: give those again, or remove it")
            for line in lines[1:-1]:
                self.answers.update({int(row): text for row, text in json.loads(line).items()})
        whole = lines[:-1] or [json.dumps(about)]
        write(path, "".join(f"{line}\n" for line in whole).encode())

    def add(self, rows: Sequence[int], texts: Sequence[str]) -> None:
        new = dict(zip(rows, texts))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({str(row): text for row, text in new.items()}) + "\n")
        self.answers.update(new)
