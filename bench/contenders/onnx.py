"""A model for the runtimes that read ONNX: exported once, with its attention in plain products, for any sizes."""

import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bench.contenders.embedding import BATCH, Embed, embed_sorted

INPUTS, OUTPUT = ("input_ids", "attention_mask"), "last_hidden_state"
OPSET = 17

Forward = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Token ids and mask [N, L] -> hidden states [N, L, H]."""

_keep: list[tempfile.TemporaryDirectory] = []
"""The folders of exports, which go when the process does."""


class _Hidden(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


@cache
def exported(folder: Path) -> Path:
    from transformers import AutoModel

    _keep.append(tempfile.TemporaryDirectory(prefix="bench-"))
    path = Path(_keep[-1].name) / "model.onnx"
    model = _Hidden(AutoModel.from_pretrained(folder, attn_implementation="eager", add_pooling_layer=False).eval())
    example = torch.arange(14).view(2, 7) + 1, torch.ones(2, 7, dtype=torch.int64)
    sizes = {0: "texts", 1: "tokens"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer tells of each Python number
        torch.onnx.export(
            model, example, str(path), input_names=list(INPUTS), output_names=[OUTPUT], opset_version=OPSET,
            dynamic_axes=dict.fromkeys((*INPUTS, OUTPUT), sizes), dynamo=False,
        )  # fmt: skip
    return path


def embed_with(folder: Path, forward: Forward, batch: int = BATCH) -> Embed:
    """The mean over tokens, as long as 1."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def embed_padded(padded: Mapping[str, np.ndarray]) -> np.ndarray:
        ids_NL, mask_NL = (padded[name].astype(np.int64) for name in INPUTS)
        keep_NL1 = mask_NL[:, :, None].astype(np.float32)
        mean_NH = (forward(ids_NL, mask_NL) * keep_NL1).sum(1) / keep_NL1.sum(1)
        return mean_NH / np.linalg.norm(mean_NH, axis=1, keepdims=True)

    return embed_sorted(tokenizer, batch, "np", embed_padded)
