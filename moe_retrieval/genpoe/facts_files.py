"""Synthetic facts as files, in the formats that the other commands read."""

import csv
import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from moe_retrieval.files import drafted, write_json
from moe_retrieval.genpoe.examples import Passage, write_examples
from moe_retrieval.genpoe.facts_settings import FactsSettings
from moe_retrieval.genpoe.passages import COLUMNS
from moe_retrieval.genpoe.synthetic import Facts

ASKED = ("train", "dev", "test")
"""The splits whose questions are written; what a decoder is trained on is texts."""


def write_facts(folder: Path, facts: Facts) -> dict[str, int]:
    """-> file -> how many passages, questions or texts it has"""
    written = {"passages.tsv": write_passages(folder / "passages.tsv", facts.passages())}
    for split in ASKED:
        written[f"{split}.json"] = write_examples(folder / f"{split}.json", facts.examples(split))
    written["texts.jsonl"] = 0
    with drafted(folder / "texts.jsonl") as file:
        for text in facts.texts():
            file.write(json.dumps({"text": text}) + "\n")
            written["texts.jsonl"] += 1
    settings = {each.name: getattr(facts.settings, each.name) for each in fields(FactsSettings)}
    write_json(folder / "facts.json", settings)
    return written


def write_passages(path: Path, passages: Iterable[Passage]) -> int:
    """As DPR has its Wikipedia: id, text and title between tabs, under a line that names them; -> how many."""
    count = 0
    with drafted(path) as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(COLUMNS)
        for passage in passages:
            rows.writerow([passage.id, " ".join(passage.text.split()), " ".join(passage.title.split())])
            count += 1
    return count
