"""Training data of a reranker: a question with what answers it and what does not, a line of JSON each.

{"query": "...", "pos": ["..."], "neg": ["..."], "prompt": "..."}, as FlagEmbedding reads it.
"""

import json
import os
import zlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moe_retrieval.data.plain import plain_file
from moe_retrieval.data.records import StoredDocuments, parse_object, read_lines, string_field
from moe_retrieval.errors import InputError
from moe_retrieval.files import drafted
from moe_retrieval.genpoe.accuracy import marked
from moe_retrieval.genpoe.examples import Example
from moe_retrieval.genpoe.prompts import PROMPTS, shown
from moe_retrieval.progress import Meter


class Group(NamedTuple):
    query: str
    pos: list[str]
    neg: list[str]
    prompt: str


def group_of(example: Example, by: str, most: int | None = None) -> Group:
    """Of the passages that were retrieved, and of those that the data names; `most` negatives, the best ranked first.

    Nothing comes twice, and nothing is both: a title of a passage with an answer is no negative.
    """
    ctxs = marked(example).ctxs
    good = [*example.positives, *(passage for passage in ctxs if passage.has_answer)]
    bad = [*(passage for passage in ctxs if not passage.has_answer), *example.hard_negatives]
    pos = list(dict.fromkeys(filter(None, (shown(passage, by) for passage in good))))
    neg = list(dict.fromkeys(text for text in (shown(passage, by) for passage in bad) if text and text not in pos))
    return Group(example.question, pos, neg[:most], PROMPTS[by])


def write_groups(path: str | os.PathLike, groups: Iterable[Group]) -> tuple[int, int]:
    """Those that have both; -> how many, and how many had not."""
    written = left_out = 0
    with drafted(Path(path)) as file:
        for group in groups:
            if group.pos and group.neg:
                file.write(json.dumps(group._asdict(), ensure_ascii=False) + "\n")
                written += 1
            else:
                left_out += 1
        if not written:
            raise InputError(f"{path}: none of {left_out} questions has passages with an answer and others without")
    return written, left_out


class Groups(StoredDocuments):
    """A file of groups, read in place: every line is checked once, at the start."""

    def __init__(self, path: str | os.PathLike):
        starts, sums = array("q"), array("I")
        plain = plain_file(path)
        self.prompt = ""
        with Meter(f"reading {os.fspath(path)}"):
            for number, start, line in read_lines(plain):
                where = f"{path}:{number}"
                prompt = _checked_prompt(parse_object(line, where), where)
                self.prompt = self.prompt or prompt
                if prompt != self.prompt:
                    raise InputError(f"{where}: expected the prompt of the lines before, got {prompt!r:.80}")
                starts.append(start)
                sums.append(zlib.crc32(line.removesuffix(b"\n")))
        if not starts:
            raise InputError(f"{path}: holds no question")
        super().__init__(plain, np.frombuffer(starts, dtype=np.int64), np.frombuffer(sums, dtype=np.uint32))

    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        record = self.record(row)
        return Group(record["query"], record["pos"], record["neg"], record["prompt"])

    def __iter__(self) -> Iterator[Group]:
        return (self[row] for row in range(len(self)))


def _checked_prompt(record: dict[str, Any], where: str) -> str:
    """The prompt of a line that is as it should be."""
    string_field(record, "query", where)
    for field in ("pos", "neg"):
        texts = record.get(field)
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(f'{where}: expected "{field}" that is a list of at least one text, got {texts!r:.60}')
    return string_field(record, "prompt", where)
