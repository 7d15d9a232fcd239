"""What a fresh process runs for its peak memory: each function prepares and returns a call."""

from collections.abc import Callable

import torch

from bench.layer_case import LayerCase, contenders, step

LAYER = LayerCase(tokens=16384, dtype=torch.float32, backward=True)


def layer_step(contender: str, smoke: str) -> Callable[[], object]:
    """Forward and backward of one layer."""
    torch.manual_seed(0)
    case = LAYER.shrunk() if smoke == "smoke" else LAYER
    layer = case.build(torch.device("cpu"))
    x, grad_y = case.inputs(layer)
    module = contenders(case, layer, only=[contender])[0][contender]
    return step(module, x, grad_y)
