"""A corpus of 450,000 long passages, from the file to the search, in a process of its own whose memory is measured."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moe_retrieval import data
from moe_retrieval.retrieval.hits import search
from moe_retrieval.retrieval.index import Index, build_index
from moe_retrieval.training.negatives import training_pairs
from moe_retrieval.training.order import BatchOrder
from tests.moe_retrieval.corpora import StandIn

PASSAGES = 450_000


def write_corpus(folder: Path) -> None:
    rng = np.random.default_rng(0)
    letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz"), (2000, 14, 6))
    sentences = [" ".join("".join(word) for word in words) for words in letters]
    (folder / "qrels").mkdir(parents=True)
    with open(folder / "corpus.jsonl", "w") as corpus:
        for row, chosen in enumerate(rng.integers(2000, size=(PASSAGES, 8)).tolist()):
            text = ". ".join([sentences[place] for place in chosen])
            corpus.write(f'{{"_id": "p{row}", "title": "passage n{row}", "text": "{text}"}}\n')
    with open(folder / "queries.jsonl", "w") as queries, open(folder / "qrels" / "train.tsv", "w") as qrels:
        for query in range(0, PASSAGES, 100):
            queries.write(json.dumps({"_id": f"q{query}", "text": f"passage n{query}"}) + "\n")
            qrels.write(f"q{query}\tp{query}\t1\n")


def use_corpus(folder: Path) -> None:
    """Read, sample, encode, index, search; prints the peak of resident memory, in bytes."""
    collection = data.load(folder)
    assert len(collection.documents) == PASSAGES
    pairs = training_pairs(collection)
    for batch in BatchOrder(len(pairs), 64, 0).batches(0):
        assert all(pairs[i].positive_text.startswith(pairs[i].query_text) for i in batch)
    model = StandIn(hidden_size=384)
    model.usage = model.usage.changed(doc_length=8)
    build_index(model, collection.documents, folder / "index", model_path="stand-in")
    hits = search(Index(folder / "index"), model, ["passage n123456"], top_k=1000)[0]
    assert "p123456" in [hit.id for hit in hits]
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


@pytest.mark.slow
def test_a_large_corpus_needs_little_memory(tmp_path):
    write_corpus(tmp_path)
    assert (tmp_path / "corpus.jsonl").stat().st_size > 350e6
    program = f"import pathlib, sys, {__name__} as test; test.use_corpus(pathlib.Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 2.5e9
