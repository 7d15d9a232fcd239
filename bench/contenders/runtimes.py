"""What else embeds on a CPU, from an export or a conversion of the model: the extra `peers` brings them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

from bench.contenders import ctranslate2, onnx, onnx_runtime, openvino
from bench.contenders.embedding import BATCH, Embed
from bench.harness.machine import importable

NEEDS = {
    onnx_runtime: ("onnx", "onnxruntime"),
    openvino: ("onnx", "openvino", "nncf"),
    ctranslate2: ("ctranslate2",),
}
NAMES = {onnx_runtime: "onnxruntime", openvino: "openvino", ctranslate2: "ctranslate2"}


def embedders(folder: Path) -> tuple[dict[str, Callable[..., Embed]], dict[str, str]]:
    """-> name and precision to what makes one for a `batch`; those that are not here, and why"""
    makers: dict[str, Callable[..., Embed]] = {}
    skipped = {}
    for runtime, name in NAMES.items():
        missing = [module for module in NEEDS[runtime] if not importable(module)]
        if missing:
            skipped[name] = f"{', '.join(missing)} not importable: pip install 'moe-retrieval[peers]'"
            continue
        for precision in runtime.PRECISIONS:
            makers[f"{name} {precision}"] = partial(_embedder, runtime, folder, precision)
    return makers, skipped


def _embedder(runtime: ModuleType, folder: Path, precision: str, *, batch: int = BATCH) -> Embed:
    return onnx.embed_with(folder, runtime.forward_of(folder, precision), batch)
