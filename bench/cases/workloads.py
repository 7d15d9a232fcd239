"""What a fresh process runs for its peak memory: each function prepares and returns a call."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from bench.cases import backbone, texts
from bench.cases.layer import LayerCase, step
from bench.contenders import our_model, sentence_transformers
from bench.contenders.embedding import Embed
from bench.contenders.layers import contenders
from bench.harness.record import OURS

CPU = torch.device("cpu")
WINDOW = 4096
"""Texts that sentence-transformers sorts and embeds together where it streams."""
LAYER = LayerCase(tokens=16384, dtype=torch.float32, backward=True)


def layer_step(contender: str, smoke: str) -> Callable[[], object]:
    """Forward and backward of one layer."""
    torch.manual_seed(0)
    case = LAYER.shrunk() if smoke == "smoke" else LAYER
    layer = case.build(CPU)
    x, grad_y = case.inputs(layer)
    module = contenders(case, layer, only=[contender])[0][contender]
    return step(module, x, grad_y)


def encode(contender: str, documents: str, smoke: str) -> Callable[[], object]:
    """A corpus embedded in bf16."""
    corpus, folder = texts.documents(int(documents)), backbone.folder(smoke == "smoke")
    if contender == OURS:
        embed = our_model.embedder(folder, "dense", "bf16", CPU)
    else:
        embed = sentence_transformers.embedder(folder, "bf16", CPU)
    return lambda: embed(corpus, False)


def encode_file(contender: str, corpus: str, smoke: str) -> Callable[[], object]:
    """A corpus.jsonl embedded: "kernels bf16 streamed" from the file to a file, "... listed" all texts to an array."""
    name, precision, way = contender.split()
    path, folder = Path(corpus), backbone.folder(smoke == "smoke")
    if name == OURS:
        model = our_model.build(folder, "dense", precision, CPU)
        if way == "streamed":
            return lambda: our_model.encode_file(model, path)
        embed = our_model.embed_with(model)
    else:
        embed = sentence_transformers.embedder(folder, precision, CPU)
        if way == "streamed":
            return lambda: stream(embed, path)
    return lambda: embed(list(passages(path)), False)


def stream(embed: Embed, path: Path) -> None:
    """Window by window, into a file that is a map of memory."""
    rows_NH, start = None, 0
    with path.open("rb") as lines:
        count = sum(1 for _ in lines)
    texts = passages(path)
    while window := list(islice(texts, WINDOW)):
        found = embed(window, False)
        if rows_NH is None:
            rows_NH = np.lib.format.open_memmap(path.with_suffix(".npy"), "w+", np.float32, (count, found.shape[1]))
        rows_NH[start : start + len(window)] = found
        start += len(window)


def passages(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]
