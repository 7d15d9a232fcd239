"""Other runtimes as contenders: they embed what transformers does, and are named where they are not installed."""

import numpy as np
import pytest
import torch

from bench.cases import backbone, texts
from bench.contenders import embedding, onnx, runtimes, transformers

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_model_embeds_what_it_did(precision):
    folder = backbone.folder(True)
    asked = texts.documents(5)
    found = transformers.compiled_embedder(folder, precision, CPU, batch=2)
    embedding.check({precision: found}, asked, False, transformers.embedder(folder, "fp32", CPU))


def test_what_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(runtimes, "importable", lambda module: module != "onnxruntime")
    makers, skipped = runtimes.embedders(tmp_path)
    assert {name.split()[0] for name in makers} == {"openvino", "ctranslate2"}
    assert skipped == {"onnxruntime": "onnxruntime not importable: pip install 'moe-retrieval[peers]'"}


def test_the_mean_is_over_real_tokens_in_the_order_of_the_texts():
    """A forward that tells each token's place, so that padding and order would show."""
    folder = backbone.folder(True)
    asked = ["one", "a much longer text of several words", "two words"]

    def forward(ids_NL, mask_NL):
        hidden_NLH = np.stack([np.ones_like(ids_NL), ids_NL * mask_NL], axis=-1).astype(np.float32)
        return np.where(mask_NL[:, :, None] == 1, hidden_NLH, 1e6)

    found_NH = onnx.embed_with(folder, forward, batch=2)(asked, False)
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(asked)["input_ids"]
    expected_NH = np.array([[1, np.mean(row)] for row in ids])
    expected_NH /= np.linalg.norm(expected_NH, axis=1, keepdims=True)
    np.testing.assert_allclose(found_NH, expected_NH, rtol=1e-6)


@pytest.mark.parametrize("runtime, name", runtimes.NAMES.items())
def test_a_runtime_embeds_what_transformers_does(runtime, name):
    folder = backbone.folder(True)
    makers, skipped = runtimes.embedders(folder)
    if name in skipped:
        pytest.skip(skipped[name])
    asked = texts.documents(5)
    found = {each: make(batch=2) for each, make in makers.items() if each.split()[0] == name}
    assert len(found) == len(runtime.PRECISIONS)
    embedding.check(found, asked, False, transformers.embedder(folder, "fp32", CPU))
