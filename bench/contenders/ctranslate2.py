"""CTranslate2 on a CPU, in int8: weights are converted before, activations scaled as they come."""

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch

from bench.contenders.onnx import Forward

PRECISIONS = ("int8",)


@cache
def forward_of(folder: Path, precision: str) -> Forward:
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        readable = _as_it_reads(folder, Path(place) / "checkpoint")
        converted = TransformersConverter(str(readable)).convert(f"{place}/model", quantization=precision)
        encoder = ctranslate2.Encoder(converted, inter_threads=1, intra_threads=torch.get_num_threads())

    def forward(ids_NL: np.ndarray, mask_NL: np.ndarray) -> np.ndarray:
        views = [ctranslate2.StorageView.from_array(part.astype(np.int32)) for part in (ids_NL, mask_NL.sum(1))]
        return np.array(encoder.forward_batch(*views).last_hidden_state)

    return forward


def _as_it_reads(folder: Path, place: Path) -> Path:
    """The converter asks for a setting that newer transformers no longer write, since there is one choice."""
    shutil.copytree(folder, place, copy_function=lambda source, target: Path(target).symlink_to(Path(source).resolve()))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (place / "config.json").unlink()
    (place / "config.json").write_text(json.dumps({"position_embedding_type": "absolute", **config}), encoding="utf-8")
    return place
