"""python -m moe_retrieval.genpoe.facts: data for an experiment without a network, in DPR's formats."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_retrieval.cli import parse, run_command
from moe_retrieval.genpoe.facts_settings import FactsSettings


@dataclass(kw_only=True)
class FactsConfig(FactsSettings):
    """Writes made-up facts about made-up people: passages.tsv; questions in train.json, dev.json and test.json, each
    with the passage that answers it and others; texts.jsonl to train a small decoder on. No split knows another's
    people."""

    output_dir: str
    """Where the files go."""


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(FactsConfig, arguments, "python -m moe_retrieval.genpoe.facts")
    from moe_retrieval.genpoe.facts_files import write_facts
    from moe_retrieval.genpoe.synthetic import make_facts
    from moe_retrieval.locks import locked

    folder = Path(config.output_dir)
    with locked(folder):
        for name, lines in write_facts(folder, make_facts(config)).items():
            print(f"{folder / name}: {lines:,}")


if __name__ == "__main__":
    run_command(main)
