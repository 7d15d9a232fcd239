"""Training pairs as a file of triplets."""

import json
from pathlib import Path

from moe_retrieval.files import drafted
from moe_retrieval.progress import Meter
from moe_retrieval.training.pairs import TrainingPairs


def write(pairs: TrainingPairs, path: str | Path) -> int:
    """A line for each pair and each of its negatives; -> their number. The whole file or the one before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with drafted(path) as file, Meter(f"writing {path.name}", len(pairs), "pairs") as meter:
        for example in meter.over(pairs):
            for negative in example.negative_texts:
                line = {"query": example.query_text, "positive": example.positive_text, "negative": negative}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                written += 1
    return written
