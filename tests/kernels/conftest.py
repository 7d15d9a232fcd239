import pytest
import torch

from kernels import dispatch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """`torch.empty` gives NaN: an output element that a backend leaves unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)


def pytest_generate_tests(metafunc):
    """A test that takes `backend` runs on each one here; with `dtype` too, in each type it computes in."""
    backends = [name for name in dispatch.available_backends() if dispatch.get(name).supports(DEVICE, torch.float32)]
    if {"backend", "dtype"} <= set(metafunc.fixturenames):
        pairs = [
            (name, dtype)
            for name in backends
            for dtype in (torch.float32, torch.float16, torch.bfloat16)
            if dispatch.get(name).supports(DEVICE, dtype)
        ]
        ids = [f"{name}-{str(dtype).removeprefix('torch.')}" for name, dtype in pairs]
        metafunc.parametrize("backend,dtype", pairs, ids=ids, indirect=["backend"])
    elif "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", backends, indirect=True)


@pytest.fixture
def backend(request):
    with dispatch.use_backend(request.param):
        yield request.param


@pytest.fixture
def device():
    return DEVICE
