"""What a fresh process runs for its peak memory: each function prepares and returns a call."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from bench.cases import backbone, texts
from bench.cases.layer import LayerCase, step
from bench.contenders import our_model, sentence_transformers
from bench.contenders.layers import contenders
from bench.harness.record import OURS

CPU = torch.device("cpu")
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
    """A corpus.jsonl embedded, as each library is used where the corpus is large."""
    name, precision = contender.split()
    path, folder = Path(corpus), backbone.folder(smoke == "smoke")
    if name == OURS:
        model = our_model.build(folder, "dense", precision, CPU)
        return lambda: our_model.encode_file(model, path)
    embed = sentence_transformers.embedder(folder, precision, CPU)

    def run() -> None:
        with path.open(encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line in file]
        embed(texts, False)

    return run
