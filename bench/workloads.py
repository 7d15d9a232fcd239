"""What a fresh process runs for its peak memory: each function prepares and returns a call."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from bench.layer_case import LayerCase, contenders, step
from bench.record import OURS

LAYER = LayerCase(tokens=16384, dtype=torch.float32, backward=True)


def layer_step(contender: str, smoke: str) -> Callable[[], object]:
    """Forward and backward of one layer."""
    torch.manual_seed(0)
    case = LAYER.shrunk() if smoke == "smoke" else LAYER
    layer = case.build(torch.device("cpu"))
    x, grad_y = case.inputs(layer)
    module = contenders(case, layer, only=[contender])[0][contender]
    return step(module, x, grad_y)


def encode(contender: str, documents: str, smoke: str) -> Callable[[], object]:
    """A corpus embedded in bf16."""
    from bench import backbone, embedders, texts

    corpus, folder = texts.documents(int(documents)), backbone.folder(smoke == "smoke")
    cpu = torch.device("cpu")
    if contender == OURS:
        embed = embedders.ours(folder, "dense", "bf16", cpu)
    else:
        embed = embedders.sentence_transformers(folder, "bf16", cpu)
    return lambda: embed(corpus, False)


def encode_file(contender: str, corpus: str, smoke: str) -> Callable[[], object]:
    """A corpus.jsonl embedded, as each library is used where the corpus is large."""
    from bench import backbone, embedders

    name, precision = contender.split()
    path, folder = Path(corpus), backbone.folder(smoke == "smoke")
    cpu = torch.device("cpu")
    if name == OURS:
        from moe_retrieval.encode import encode_texts

        from moe_retrieval.data.records import Documents

        model = embedders.our_model(folder, "dense", precision, cpu)

        def run() -> None:
            documents = Documents(path)
            output = path.with_suffix(".npy")
            encode_texts(model, documents.texts, output=output, fingerprint=documents.fingerprint)
    else:
        embed = embedders.sentence_transformers(folder, precision, cpu)

        def run() -> None:
            with path.open(encoding="utf-8") as file:
                texts = [json.loads(line)["text"] for line in file]
            embed(texts, False)

    return run
