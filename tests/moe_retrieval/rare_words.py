"""A collection in BEIR format, in which a question has the rare words of its document, and a fast run on it."""

import json

import numpy as np

from moe_retrieval.config import TrainConfig

SCRATCH = dict(model="scratch", hidden=24, num_layers=2, heads=3, ff=40, vocab_size=300, doc_length=24, query_length=12)
FAST = TrainConfig(
    **SCRATCH, max_steps=12, batch_size=16, eval_every=4, save_every=4, lr=3e-3, precision="fp32", no_eval=True
)


def write_collection(folder, documents=120, queries=90, test=20, dev=20):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 4)) for _ in range(60)]
    texts = [" ".join(rng.choice(words, rng.integers(3, 12))) for _ in range(documents)]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "corpus.jsonl", "w") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"_id": f"d{number}", "title": "", "text": text}) + "\n")
    with open(folder / "queries.jsonl", "w") as file:
        for number in range(queries):
            chosen = rng.choice(texts[number].split(), 3)
            file.write(json.dumps({"_id": f"q{number}", "text": " ".join(chosen)}) + "\n")
    (folder / "qrels").mkdir(exist_ok=True)
    borders = {
        "train": (0, queries - test - dev),
        "dev": (queries - test - dev, queries - test),
        "test": (queries - test, queries),
    }
    for split, (start, stop) in borders.items():
        lines = [f"q{number}\td{number}\t1\n" for number in range(start, stop)]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder
