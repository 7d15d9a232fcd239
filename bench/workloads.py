"""What a fresh process runs for its peak memory: each function prepares and returns a call."""

from collections.abc import Callable

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
