"""A log of what the routers of a model decide."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from kernels.layers import moe_layers
from kernels.routing import Routing


@contextmanager
def record_routing(model: nn.Module) -> Iterator[dict[str, list[Routing]]]:
    """Logs every forward of every MoE layer while the context lasts: layer name -> a `Routing` for each forward.

    >>> import torch, kernels
    >>> model = torch.nn.Sequential(kernels.MoE(8, 16, num_experts=4, top_k=2))
    >>> with kernels.record_routing(model) as log:
    ...     _ = model(torch.randn(10, 8))
    >>> [routing.indices_TK.shape for routing in log["0"]]
    [torch.Size([10, 2])]
    """
    layers = moe_layers(model)
    log: dict[str, list[Routing]] = {name: [] for name in layers}
    before = {name: layer.recorder for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.recorder = log[name]
    try:
        yield log
    finally:
        for name, layer in layers.items():
            layer.recorder = before[name]
