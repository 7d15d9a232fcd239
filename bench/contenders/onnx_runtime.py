"""ONNX Runtime on a CPU: fp32 with its fused attention, or int8 of which the activations are scaled as they come."""

from functools import cache
from pathlib import Path

import numpy as np
import torch

from bench.contenders.onnx import INPUTS, OUTPUT, Forward, exported

PRECISIONS = ("fp32", "int8")


@cache
def forward_of(folder: Path, precision: str) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # between calls others have the cores
    file = _fused(folder) if precision == "fp32" else _quantized(folder)
    session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])

    def forward(ids_NL: np.ndarray, mask_NL: np.ndarray) -> np.ndarray:
        return session.run([OUTPUT], dict(zip(INPUTS, (ids_NL, mask_NL))))[0]

    return forward


@cache
def _fused(folder: Path) -> Path:
    from onnxruntime.transformers.optimizer import optimize_model
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    path = exported(folder).with_name("fused.onnx")
    model = optimize_model(
        str(exported(folder)), "bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
    )
    fused = model.get_fused_operator_statistics().get("Attention", 0)
    assert fused == config.num_hidden_layers, f"ONNX Runtime fused {fused} of {config.num_hidden_layers} attentions"
    model.save_model_to_file(str(path))
    return path


@cache
def _quantized(folder: Path) -> Path:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = exported(folder).with_name("int8.onnx")
    options = {"DefaultTensorType": onnx.TensorProto.FLOAT}  # of what a fused operator returns
    quantize_dynamic(
        str(_fused(folder)), str(path), weight_type=QuantType.QInt8, per_channel=True, extra_options=options
    )
    return path
