"""What `import moe_retrieval` does, and what it does not."""

import subprocess
import sys

import pytest

from moe_retrieval.models import export
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
        ("from transformers import AutoModel", ""),
        ("from transformers import AutoConfig", "from transformers import AutoModel"),
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
