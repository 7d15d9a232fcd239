"""A corpus of 450,000 long passages, from the file to the search, in a process of its own whose memory is measured."""

import json
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from moe_retrieval import data
from moe_retrieval.retrieval.hits import search
from moe_retrieval.retrieval.index import ADDED_TOGETHER, Index, build_index
from moe_retrieval.training.negatives import training_pairs
from moe_retrieval.training.order import BatchOrder
from tests.moe_retrieval.corpora import StandIn

PASSAGES, HIDDEN = 450_000, 384

VECTOR = 4 * HIDDEN
"""Bytes"""

DOCUMENT = 64
"""Bytes: 20 that are kept of a document, 16 while ids are sorted, and what arrays grow by"""

WORK = 100e6
"""Bytes: a window of texts, a batch, 25 MB of vectors that are added together, libraries that are loaded on the way"""


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


def own_memory() -> int:
    """Bytes that no file backs: the pages of a memory map are the system's to take back."""
    kilobytes = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(kilobytes[1])


@contextmanager
def watched(peaks: dict[str, float], name: str):
    """Fills in the most that this process had of its own meanwhile, looked at every 2 ms."""
    ended = threading.Event()
    peaks[name] = own_memory()

    def watch():
        while not ended.wait(0.002):
            peaks[name] = max(peaks[name], own_memory())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        peaks[name] = max(peaks[name], own_memory())


def use_corpus(folder: Path) -> None:
    """Read, sample, encode, index, search; prints the peak of each, in bytes beyond what was there at the start."""
    model = StandIn(hidden_size=HIDDEN)
    model.usage = model.usage.changed(doc_length=8)
    peaks: dict[str, float] = {}
    start = own_memory()
    with watched(peaks, "read"):
        collection = data.load(folder)
        assert len(collection.documents) == PASSAGES
        pairs = training_pairs(collection)
        for batch in BatchOrder(len(pairs), 64, 0).batches(0):
            assert all(pairs[i].positive_text.startswith(pairs[i].query_text) for i in batch)
    with watched(peaks, "build"):
        build_index(model, collection.documents, folder / "index", model_path="stand-in")
    with watched(peaks, "search"):
        hits = search(Index(folder / "index"), model, ["passage n123456"], top_k=1000)[0]
        assert "p123456" in [hit.id for hit in hits]
    print(json.dumps({name: peak - start for name, peak in peaks.items()}))


def vectors_while_an_index_doubles() -> int:
    """FAISS keeps vectors in an array that doubles: for a moment there are the old one and what is copied of it."""
    full = ADDED_TOGETHER
    while 2 * full < PASSAGES:
        full *= 2
    return max(2 * full + ADDED_TOGETHER, PASSAGES)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell whose memory is whose")
def test_a_large_corpus_needs_little_memory(tmp_path):
    """Neither the texts nor a second copy of the vectors: each alone would be over the limit."""
    write_corpus(tmp_path)
    size = (tmp_path / "corpus.jsonl").stat().st_size
    assert size > 350e6
    program = f"import pathlib, sys, {__name__} as test; test.use_corpus(pathlib.Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout.splitlines()[-1])
    limits = {
        "read": DOCUMENT * PASSAGES,
        "build": DOCUMENT * PASSAGES + VECTOR * vectors_while_an_index_doubles() + WORK,
        "search": DOCUMENT * PASSAGES + VECTOR * PASSAGES + WORK,
    }
    assert all(peaks[name] < limits[name] for name in limits), (peaks, limits)
    assert all(limits[name] < peaks[name] + size for name in limits), "limits that allow for the texts"
