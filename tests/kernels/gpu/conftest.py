import pytest

from kernels import dispatch

if "triton" not in dispatch.available_backends():
    collect_ignore_glob = ["test_twins*.py", "test_launches.py"]


@pytest.fixture(autouse=True)
def seeded():
    import torch

    torch.manual_seed(0)
