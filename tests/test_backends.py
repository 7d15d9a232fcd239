"""A backend that fails to import makes its tests vanish: who means to test it names it here."""

import os
import subprocess
import sys

import pytest
import torch

import kernels
from kernels import dispatch

NAME = "MOE_RETRIEVAL_TEST_BACKENDS"
REQUIRED = [name.strip() for name in os.environ.get(NAME, "eager").split(",")]


@pytest.mark.parametrize("name", REQUIRED)
def test_a_required_backend_runs(name):
    """The error says why it is absent."""
    backend = dispatch.get(name)
    device = torch.device("cuda" if torch.cuda.is_available() and name == "triton" else "cpu")
    layer = kernels.MoE(8, 16, num_experts=4, top_k=2).to(device)
    x = torch.randn(5, 8, device=device)
    with kernels.use_backend("eager"):
        expected = layer(x)
    assert backend.supports(device, torch.float32)
    with kernels.use_backend(name):
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, breaks", [("native", {"MOE_KERNELS_CPU_LEVEL": "none"}), ("triton", {"BROKEN": "triton"})]
)
def test_a_backend_that_is_broken_fails_the_suite(name, breaks, tmp_path):
    """With its reason, where it is named; where it is not, nothing is said."""
    (tmp_path / "triton.py").write_text("raise ImportError('the stand-in is no Triton')\n")
    path = os.pathsep.join([*([str(tmp_path)] if "BROKEN" in breaks else []), os.getcwd()])
    environment = os.environ | breaks | {"PYTHONPATH": path}
    command = [sys.executable, "-m", "pytest", "-q", f"{__file__}::{test_a_required_backend_runs.__name__}"]
    for required, status in (("eager", 0), (f"eager,{name}", 1)):
        run = subprocess.run(command, env=environment | {NAME: required}, capture_output=True, text=True)
        assert run.returncode == status, run.stdout
        assert (f"backend '{name}' is not available here" in run.stdout) == bool(status)
