"""The contenders of a case of a layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bench.cases.correct import prove
from bench.cases.layer import LayerCase, step
from bench.contenders.ffn import OneDNNFFN, dense
from bench.contenders.huggingface import hugging_face
from bench.contenders.liger import liger
from bench.contenders.loop import every_expert, loop, loop_in_place
from bench.contenders.our_layer import Layer
from bench.harness import onednn
from bench.harness.machine import importable
from bench.harness.record import BASELINE, LIMIT, OURS

GATHERED_LIMIT = {"cpu": 2**28, "cuda": 2**34}
"""Bytes of weights that batched_mm may copy, one set a slot."""


def contenders(
    case: LayerCase, layer: Layer, only: Sequence[str] | None = None
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """-> those that take part, with the layer's weights, and why the others do not"""
    device = layer.experts.up_weight.device
    makers: dict[str, Callable[[Layer], nn.Module]] = {OURS: lambda layer: layer, BASELINE: loop}
    makers[f"{BASELINE} index_add_"] = loop_in_place
    skipped: dict[str, str] = {}
    if case.layer == "SBMoE":
        makers["every expert"] = every_expert
    for implementation in ("eager", "batched_mm", "grouped_mm"):
        makers[f"hf {implementation}"] = partial(hugging_face, implementation=implementation)
    if device.type == "cuda" and case.activation == "swiglu" and not case.bias:
        makers["liger"] = liger
    else:
        skipped["liger"] = "has swiglu experts without biases, on a GPU"
    makers[LIMIT] = dense
    if onednn.available(device):
        makers[f"{LIMIT} onednn"] = partial(dense, kind=OneDNNFFN)

    gathered = case.tokens * case.active * (layer.experts.up_weight[0].nbytes + layer.experts.down_weight[0].nbytes)
    if gathered > GATHERED_LIMIT[device.type]:
        skipped["hf batched_mm"] = f"would copy more than {GATHERED_LIMIT[device.type] >> 20} MiB of weights"
    for prefix, package in (("hf", "transformers.integrations.moe"), ("liger", "liger_kernel.ops.fused_moe")):
        theirs = [name for name in makers if name.startswith(prefix)]
        if theirs and not importable(package):
            skipped |= dict.fromkeys(theirs, f"{package} is not importable")
    wanted = [name for name in makers if name not in skipped and (only is None or name in only)]
    return {name: makers[name](layer) for name in wanted}, skipped


@dataclass
class Prepared:
    """A case as it is run: its inputs, and the contenders that have been proved right on them."""

    case: LayerCase
    x: Tensor
    grad_y: Tensor
    modules: dict[str, nn.Module]
    skipped: dict[str, str]
    """Contender -> why it does not take part."""

    def calls(self) -> dict[str, Callable[[], Tensor]]:
        grad_y = self.grad_y if self.case.backward else None
        return {name: step(module, self.x, grad_y) for name, module in self.modules.items()}


def prepare(case: LayerCase, device: torch.device, smoke: bool, only: Sequence[str] | None = None) -> Prepared:
    """In a smoke test the case is a small one, and every contender must be right."""
    case = case.shrunk() if smoke else case
    torch.manual_seed(0)
    layer = case.build(device)
    x, grad_y = case.inputs(layer)
    modules, skipped = contenders(case, layer, only)
    modules, refused = prove(case, layer, modules, x, grad_y, strict=smoke)
    return Prepared(case, x, grad_y, modules, skipped | refused)
