"""What `import moe_retrieval` does, and what it does not."""

import subprocess
import sys

import pytest

from moe_retrieval.models import export
from tests.moe_retrieval.berts import make_bert
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer

HOOK = """
import sys
{first}
import moe_retrieval
assert {heavy} or not {{"torch", "transformers"}} & set(sys.modules), "import moe_retrieval is heavy"
{second}
print(type(AutoModel.from_pretrained(sys.argv[1])).__name__)
"""


@pytest.mark.parametrize(
    "first, second",
    [
        ("", "from transformers import AutoModel"),
        pytest.param("from transformers import AutoModel", "", marks=pytest.mark.slow),
        pytest.param(
            "from transformers import AutoConfig", "from transformers import AutoModel", marks=pytest.mark.slow
        ),
    ],
)
def test_automodel_knows_our_models_after_the_import(first, second, tmp_path):
    export.save(tmp_path, tiny_retriever(), tiny_tokenizer(), "card")
    code = HOOK.format(first=first, second=second, heavy=bool(first))
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert out.stdout.strip() == "RetrieverModel", out.stderr


def test_another_kernels_package_is_told_apart(tmp_path):
    (tmp_path / "kernels.py").write_text("__all__ = ['get_kernel']\n")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import moe_retrieval"
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    (last,) = out.stderr.strip().splitlines()[-1:]
    assert last.startswith("ImportError: the package kernels at")
    assert "pip uninstall kernels" in last


@pytest.mark.parametrize("variant, control_of", [("dense", None), ("sb-moe", None), ("dense-wide", "sb-moe")])
def test_a_backbone_is_read_without_the_compiler_of_torch(tmp_path, variant, control_of):
    """Modules that are made for their sizes alone must not ask the meta device for random numbers."""
    make_bert(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32).save_pretrained(
        tmp_path
    )
    code = "import sys; from pathlib import Path; from moe_retrieval.models.loading import build_retriever; "
    code += f"build_retriever('bert', Path(sys.argv[1]), {variant!r}, {control_of!r}); "
    code += "print('torch._dynamo' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert out.stdout.strip() == "False", out.stderr
