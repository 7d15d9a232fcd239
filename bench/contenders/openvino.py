"""OpenVINO on a CPU: fp32, bf16, and int8 by NNCF with ranges that it has seen, alone or with bf16 for the rest."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.cases import texts
from bench.contenders.embedding import sorted_batches
from bench.contenders.onnx import INPUTS, Forward, exported

PRECISIONS = ("fp32", "bf16", "int8", "int8+bf16")
CALIBRATED_ON = 64
"""Texts by which int8 chooses its ranges."""


@cache
def forward_of(folder: Path, precision: str) -> Forward:
    import openvino

    model = _quantized(folder) if precision.startswith("int8") else openvino.Core().read_model(exported(folder))
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision.endswith("bf16") else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",  # all cores on one batch, as everybody here
    }
    compiled = openvino.Core().compile_model(model, "CPU", settings)

    def forward(ids_NL: np.ndarray, mask_NL: np.ndarray) -> np.ndarray:
        return compiled(dict(zip(INPUTS, (ids_NL, mask_NL))))[0]

    return forward


@cache
def _quantized(folder: Path) -> Any:
    import nncf
    import openvino
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    batches = sorted_batches(tokenizer, texts.documentation(CALIBRATED_ON), False, 1, "np")
    seen = [{name: padded[name].astype(np.int64) for name in INPUTS} for _, padded in batches]
    model = openvino.Core().read_model(exported(folder))
    return nncf.quantize(model, nncf.Dataset(seen), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(seen))
