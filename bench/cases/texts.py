"""Texts of natural lengths: SciFact, where $MOE_RETRIEVAL_DATA has it, or made-up ones that are as long; docstrings."""

import json
import math
import os
import random
from functools import cache
from pathlib import Path

from bench.contenders import our_model

SYLLABLES = ("ba", "co", "di", "fe", "gu", "ha", "in", "ju", "ka", "lo", "mi", "ne", "or", "pe", "ra", "su", "ta", "vo")


def source() -> str:
    """What `documents` and `queries` are."""
    return "SciFact" if _folder() else "made-up texts"


@cache
def documents(count: int) -> list[str]:
    """About 300 tokens each at the median, some ten times as long as others."""
    if folder := _folder():
        records = _read(folder / "corpus.jsonl", count)
        return _repeated([f"{record.get('title', '')} {record['text']}".strip() for record in records], count)
    chance = random.Random(0)
    return [_sentence(chance, round(math.exp(chance.gauss(5.2, 0.4)))) for _ in range(count)]


@cache
def queries(count: int) -> list[str]:
    """About 20 tokens each."""
    if folder := _folder():
        return _repeated([record["text"] for record in _read(folder / "queries.jsonl", count)], count)
    chance = random.Random(1)
    return [_sentence(chance, chance.randint(5, 25)) for _ in range(count)]


@cache
def documentation(count: int) -> list[str]:
    """Of the installed packages, from all over them: most are short, some much longer than a model reads."""
    stored = our_model.documentation()
    return [stored[place * len(stored) // count] for place in range(count)]


def write_passages(path: Path, count: int) -> None:
    """A corpus.jsonl of `count` passages of 2 to 5 short words, each word a token or two."""
    chance = random.Random(2)
    with path.open("w", encoding="utf-8") as file:
        for row in range(count):
            text = " ".join(chance.choices(SYLLABLES, k=chance.randint(2, 5)))
            file.write(json.dumps({"_id": str(row), "text": text}) + "\n")


def _folder() -> Path | None:
    data = os.environ.get("MOE_RETRIEVAL_DATA")
    folder = Path(data) / "scifact" if data else None
    return folder if folder and (folder / "corpus.jsonl").is_file() else None


def _read(path: Path, count: int) -> list[dict]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for _, line in zip(range(count), file)]


def _repeated(texts: list[str], count: int) -> list[str]:
    return (texts * -(-count // len(texts)))[:count]


def _sentence(chance: random.Random, words: int) -> str:
    return " ".join("".join(chance.choices(SYLLABLES, k=chance.randint(1, 4))) for _ in range(words))
